"""Margins, divergences and probabilities held against the equations."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_runs import INF, NAN, ROUND, answers, logits, run_of, runs

from guard.scores import (
    SCORES,
    divergence,
    logits_from_probabilities,
    margin,
    predicted_class,
    relative_divergence,
    softmax,
)
from guard.types import Answers, ModelRun


def test_margin_is_the_lead_over_the_best_other_class():
    rows = np.array([[5.0, 1, 3], [5, 1, 3], [2, 2, 0]])
    assert margin(rows, np.array([0, 1, 0])).tolist() == [2, -4, 0]


def test_margin_leaves_its_input_alone():
    rows = np.array([[5.0, 1, 3]])
    margin(rows, np.array([0]))
    assert rows.tolist() == [[5, 1, 3]]


def test_divergence_is_the_margin_that_the_bounds_cost_the_predicted_class():
    found = divergence(run_of([[9, 1, 0], [9, 1, 0], [0, 4, 1]], [[4, 1, 0], [0, 1, 3], [0, 5, 1]]))
    assert found.tolist() == [8 - 3, 8 - -3, 3 - 4]


def test_divergence_follows_the_originals_class_not_the_bounded_models():
    assert divergence(run_of([[2, 0]], [[0, 7]])).tolist() == [2 - -7]


@given(rows=logits(elements=st.floats(-1e30, 1e30)))
def test_models_that_agree_diverge_by_exactly_nothing(rows):
    run = run_of(rows, rows)
    assert (divergence(run) == 0).all()
    assert (relative_divergence(run) == 0).all()


@given(rows=logits(elements=ROUND), shift=ROUND)
def test_divergence_does_not_see_a_constant_added_to_a_row(rows, shift):
    other = rows[:, ::-1]
    assert (divergence(run_of(rows + shift, other - shift)) == divergence(run_of(rows, other))).all()


@pytest.mark.parametrize(
    ("bounded", "score"), [([3, 0], 2 / 4), ([0, 0], 5.0), ([0, 7], 12.0), ([9, 0], -4 / 10), ([4.5, 0], 0.5 / 5.5)]
)
def test_relative_divergence_divides_by_one_nat_and_the_margin_that_is_left(bounded, score):
    assert relative_divergence(run_of([[5, 0]], [bounded])).tolist() == [score]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("row", [[NAN, 1, 0], [NAN] * 3, [INF, 1, 0], [INF, INF, 0], [-INF] * 3, [1, -INF, -INF]])
def test_an_original_that_gives_no_margin_scores_infinity(name, row):
    assert SCORES[name](run_of([row, [3, 1, 0]], [[2, 1, 0], [3, 1, 0]])).tolist() == [INF, 0]


@pytest.mark.parametrize("name", SCORES)
@pytest.mark.parametrize("row", [[NAN, 1, 0], [1, NAN, 0], [-INF] * 3, [1, -INF, -INF], [INF, 1, 0], [-INF, 1, 0]])
def test_a_bounded_model_that_gives_no_margin_scores_infinity(name, row):
    assert SCORES[name](run_of([[3, 1, 0]], [row])).tolist() == [INF]


@pytest.mark.parametrize("name", SCORES)
def test_nan_in_the_output_scores_infinity_although_the_logits_beside_it_are_finite(name):
    original = Answers(outputs=np.array([[NAN, 0.5]]), logits=np.array([[1.0, 1.0]]))
    assert SCORES[name](ModelRun(original=original, bounded=answers([[1, 1]]))).tolist() == [INF]


@pytest.mark.parametrize("name", SCORES)
def test_logits_at_the_ends_of_float64_score_infinity_without_a_warning(name):
    assert SCORES[name](run_of([[1e308, -1e308]], [[0, 0]])).tolist() == [INF]


@pytest.mark.parametrize("name", SCORES)
def test_classes_that_are_impossible_in_both_models_do_not_matter(name):
    with_impossible = SCORES[name](run_of([[5, 3, -INF]], [[4, 3, -INF]]))
    assert with_impossible.tolist() == SCORES[name](run_of([[5, 3]], [[4, 3]])).tolist()
    assert np.isfinite(with_impossible).all()


@given(drawn=runs())
def test_no_score_is_ever_nan(drawn):
    assert not any(np.isnan(score(drawn[0])).any() for score in SCORES.values())


def test_predicted_class_is_the_first_of_the_largest_numbers():
    rows = np.array([[1.0, 3, 3], [NAN, 1, 2], [NAN, NAN, -5], [NAN, NAN, NAN], [-INF, INF, INF]])
    assert predicted_class(rows).tolist() == [1, 2, 2, 0, 1]


def test_softmax_sums_to_one_and_gives_nothing_to_the_impossible():
    found = softmax(np.array([[0, 0, -INF], [1000, 1000 + np.log(3), -1000]]))
    np.testing.assert_allclose(found, [[0.5, 0.5, 0], [0.25, 0.75, 0]], rtol=1e-12)


@given(rows=logits(elements=st.floats(-20, 20)))
def test_the_logarithm_of_probabilities_has_the_margins_of_the_logits(rows):
    classes = predicted_class(rows)
    np.testing.assert_allclose(
        margin(logits_from_probabilities(softmax(rows)), classes), margin(rows, classes), atol=1e-9
    )


@pytest.mark.parametrize(("dtype", "exponent"), [(np.float16, -24), (np.float32, -149), (np.float64, -1074)])
def test_probabilities_that_underflowed_count_as_the_smallest_of_their_dtype(dtype, exponent):
    found = logits_from_probabilities(np.array([[1, 0, -0.0]], dtype=dtype))
    assert found.dtype == np.float64
    np.testing.assert_allclose(found, [[0, exponent * np.log(2), exponent * np.log(2)]])
