"""TED and TED++: ranks of the nearest clean neighbour of the predicted class."""

from functools import partial

import numpy as np
import pytest
from image_problems import backdoored, images, with_trigger

from benchmarks.baselines import BASELINES, score_and_count
from benchmarks.baselines.ted import Bank, distances, outlier_score, ranks
from benchmarks.baselines.ted_plus_plus import rank_in_tubes, thickness
from guard.errors import CalibrationError

LINE = Bank(features=np.array([[0.0], [1.0], [2.0], [10.0], [11.0], [13.0]]), classes=np.array([0, 0, 0, 1, 1, 1]))


rank_in_line = partial(ranks, LINE)


def ranked(rank, places, classes):
    gaps = distances(np.array(places, float)[:, None], LINE.features)
    return rank(gaps, np.array(classes)).tolist()


def clean_images():
    """Return images of two classes, 1 brighter in the second channel, 2 in the third."""
    inputs, labels = images(40), np.arange(40) % 2 + 1
    inputs[np.arange(40), labels] += 0.4
    return inputs, labels


def test_distances_are_euclidean():
    found = distances(np.array([[0.0, 0.0], [3.0, 0.0]]), np.array([[3.0, 4.0]]))
    np.testing.assert_allclose(found, [[5.0], [4.0]])


def test_the_rank_of_a_duplicate_is_zero():
    assert ranked(rank_in_line, LINE.features[:, 0], LINE.classes) == [0] * 6


def test_the_rank_counts_who_is_nearer_than_the_nearest_of_the_class():
    assert ranked(rank_in_line, [0.0, 2.0, 5.9, 6.1, 12.1], [1, 1, 1, 0, 0]) == [3, 3, 1, 1, 3]


def test_a_class_without_clean_inputs_has_the_last_rank():
    assert ranked(rank_in_line, [0.0], [7]) == [6]


def test_a_tube_is_as_thick_as_the_half_of_the_class_is_far():
    assert thickness(LINE).tolist() == [2.0, 1.0, 2.0, 3.0, 2.0, 3.0]  # of 3: the ceil(1.5) = second nearest other


def test_around_the_only_input_of_a_class_there_is_no_tube():
    assert thickness(Bank(features=np.array([[0.0], [5.0]]), classes=np.array([0, 1]))).tolist() == [np.inf, np.inf]


def test_outside_the_tube_is_the_last_rank_and_inside_the_same():
    places, classes = [-1.9, -2.1, 5.0, 12.9], [0, 0, 0, 1]
    assert ranked(rank_in_line, places, classes) == [0, 0, 0, 0]
    assert ranked(rank_in_tubes(LINE), places, classes) == [0, 5, 5, 0]
    assert ranked(rank_in_tubes(LINE), [0.0], [7]) == [6]


def test_the_outlier_score_is_what_pyods_pca_defines():
    clean = np.random.default_rng(0).normal(size=(50, 4)) * [1, 2, 3, 4] + 5
    vectors = clean[:3] + 1
    standard = (vectors - clean.mean(axis=0)) / clean.std(axis=0)
    values, axes = np.linalg.eigh(np.corrcoef(clean.T))
    expected = 0
    for value, axis in zip(values[:-3:-1], axes.T[:-3:-1], strict=True):
        unit = axis * np.sign(axis[np.abs(axis).argmax()])
        expected += np.linalg.norm(standard - unit, axis=1) / (value / values.sum())
    np.testing.assert_allclose(outlier_score(clean)(vectors), expected)


def test_the_outlier_score_of_constant_vectors_is_the_distance_to_them():
    judge = outlier_score(np.zeros((5, 3)))
    near, far = judge(np.array([[0.0, 0.0, 0.0], [9.0, 9.0, 9.0]]))
    assert far > 5 * near


@pytest.mark.parametrize("name", ["ted", "ted++"])
def test_triggered_inputs_lie_further_out_than_any_clean_one(name):
    inputs, labels = clean_images()
    detector, classifier = BASELINES[name], backdoored()
    scorer = detector.fit(classifier, inputs[:30], labels[:30])
    clean, passes = score_and_count(detector, scorer, classifier, inputs[30:])
    assert passes == 1
    assert scorer(with_trigger(inputs[30:])).min() > clean.max()


def test_too_few_inputs_answered_rightly_are_refused():
    inputs, labels = clean_images()
    with pytest.raises(CalibrationError, match="0 of 40 clean inputs are answered rightly"):
        BASELINES["ted"].fit(backdoored(), inputs, 3 - labels)
