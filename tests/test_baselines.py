"""Baselines that run the classifier on changed copies of an input: STRIP, SCALE-UP, TeCo."""

import math

import numpy as np
import pytest
from image_problems import backdoored, classifier_of, images, uniform, with_trigger
from small_graphs import node

from benchmarks.baselines import BASELINES, OnnxClassifier, score_and_count
from benchmarks.baselines.scale_up import fit_scale_up, fit_scale_up_limited
from benchmarks.baselines.strip import entropies, fit_strip
from benchmarks.baselines.teco import first_changes, fit_teco
from benchmarks.corruptions import CORRUPTIONS
from guard.errors import InputError

LABELS = np.zeros(12, np.int64)


def by_brightness(*limits: float) -> OnnxClassifier:
    """Return a classifier of the mean pixel: class 0 changes to 1 and back at each limit in turn."""
    steps = np.array([[-10.0, 10.0, 0.0], [10.0, -10.0, 0.0]])[: len(limits)]
    start = np.array([5.0, 0.0, 0.0])
    nodes = (
        node("ReduceMean", ["x"], ["mean"], axes=[1, 2, 3], keepdims=0),
        node("Unsqueeze", ["mean", "axis"], ["column"]),
        node("Greater", ["column", "limits"], ["passed"]),
        node("Cast", ["passed"], ["ones"], to=1),
        node("MatMul", ["ones", "steps"], ["moved"]),
        node("Add", ["moved", "start"], ["y"]),
    )
    weights = {"axis": np.array([1]), "limits": np.array([limits]), "steps": steps, "start": start[None]}
    return classifier_of(*nodes, weights=weights, n_classes=3)


def of_brightness(*values: float) -> np.ndarray:
    return np.stack([np.full((3, 8, 8), value, np.float32) for value in values])


def test_entropy_is_over_the_classes_of_each_row():
    found = entropies(np.array([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0], [0.25] * 4]))
    np.testing.assert_allclose(found, [0, math.log(2), math.log(4)])


def test_strip_scores_minus_the_entropy_of_guessing_where_all_classes_are_equal():
    score = fit_strip(uniform(5), images(), LABELS, n_overlays=4)
    np.testing.assert_allclose(score(images(3)), -math.log(5), rtol=1e-6)


def test_strip_scores_zero_where_the_trigger_decides_whatever_lies_over_it():
    score = fit_strip(backdoored(), images(), LABELS, n_overlays=8)
    np.testing.assert_allclose(score(with_trigger(images(3))), 0, atol=1e-12)


def test_strip_finds_triggered_images_more_suspicious_than_any_clean_one():
    score = fit_strip(backdoored(), images(), LABELS)
    assert score(with_trigger(images(6, seed=1))).min() > score(images(6, seed=1)).max()


def test_strips_score_of_an_input_depends_on_no_other():
    score, inputs = fit_strip(backdoored(), images(), LABELS, n_overlays=5), images(4, seed=1)
    np.testing.assert_allclose(score(inputs)[2:3], score(inputs[2:3]), rtol=1e-6)


def test_scale_up_is_the_share_of_copies_that_keep_the_class():
    score = fit_scale_up(by_brightness(0.5, 0.85), images(), LABELS, factors=(2, 3, 4, 5))
    # 2 x .2 = .4 keeps class 0, .6 and .8 do not, 1.0 is class 0 again.
    np.testing.assert_allclose(score(of_brightness(0.2, 0.01, 0.4)), [0.5, 1.0, 0.75])


def test_scale_up_cuts_pixels_off_at_one():
    score = fit_scale_up(by_brightness(2.0), images(), LABELS)
    np.testing.assert_array_equal(score(of_brightness(0.9)), [1.0])


def test_scale_up_standardises_by_the_clean_images_of_the_predicted_class():
    clean = of_brightness(0.01, 0.2, 0.4, 0.6)  # shares 1, .5, .75 of class 0; class 1 has one image, of share 0
    classifier = by_brightness(0.5, 0.85)
    score = fit_scale_up_limited(classifier, clean, LABELS[:4], factors=(2, 3, 4, 5))
    deviation, of_all = np.std([1, 0.5, 0.75]), np.std([1, 0.5, 0.75, 0])
    np.testing.assert_allclose(score(of_brightness(0.01, 0.4, 0.6)), [0.25 / deviation, 0, 0], atol=1e-12)
    np.testing.assert_allclose(score(of_brightness(0.7)), 0 / of_all)


def test_scale_up_finds_a_trigger_that_outweighs_scaling():
    classifier = by_brightness(0.5)
    score = fit_scale_up(classifier, images(), LABELS)
    assert score(of_brightness(0.9)) > score(of_brightness(0.2))


def test_tecos_first_changes_are_severities_and_six_where_none_is():
    is_changed = np.array([[1, 1, 1, 1, 1], [0, 0, 1, 0, 1], [0, 0, 0, 0, 1], [0, 0, 0, 0, 0]], bool)
    assert first_changes(is_changed).tolist() == [1, 3, 5, 6]


def test_teco_scores_zero_where_no_corruption_changes_the_class():
    score = fit_teco(uniform(3), images(), LABELS)
    np.testing.assert_array_equal(score(images(2)), 0)


def test_teco_scores_the_deviation_over_corruptions():
    score = fit_teco(by_brightness(0.501), images(), LABELS)
    found = score(of_brightness(127 / 255))  # some brighten a plain grey image at once, blurs never
    assert 1 < found[0] <= 2.5


def test_tecos_score_of_an_input_depends_on_no_other_and_on_nothing_before():
    score, inputs = fit_teco(by_brightness(0.25, 0.5), images(), LABELS), images(3, seed=1)
    alone = score(inputs[1:2])
    np.testing.assert_array_equal(score(inputs)[1:2], alone)
    np.testing.assert_array_equal(score(inputs[1:2]), alone)


def test_teco_refuses_images_without_three_colours():
    flat = classifier_of(
        node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["y"]), weights={"w": np.zeros((64, 3))}, n_classes=3,
        channels=1,
    )  # fmt: skip
    with pytest.raises(InputError, match=r"images are uint8 \(1, 8, 8, 1\)"):
        fit_teco(flat, images(), LABELS)(np.zeros((1, 1, 8, 8), np.float32))


@pytest.mark.parametrize(("name", "passes"), [("strip", 101), ("scale-up", 6), ("scale-up-limited", 6), ("teco", 76)])
def test_passes_are_the_rows_run_per_input(name, passes):
    detector, classifier = BASELINES[name], backdoored()
    scorer = detector.fit(classifier, images(), LABELS)
    scores, counted = score_and_count(detector, scorer, classifier, images(2, seed=1))
    assert (scores.shape, counted) == ((2,), passes)
    assert 1 + 5 * len(CORRUPTIONS) == 76
