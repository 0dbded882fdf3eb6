"""The decision's arithmetic held against the equations, and against what a caller reads off the answer."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.scores import (
    SCORES,
    correct,
    divergence,
    logits_from_probabilities,
    margin,
    predicted_class,
    relative_divergence,
    softmax,
)
from guard.types import Answers, ModelRun

INF, NAN = np.inf, np.nan
FLOATS = (np.float16, np.float32, np.float64)
ROUND = st.integers(-3, 3).map(float)
"""Few values, so that many are tied."""
ANY = st.one_of(ROUND, st.floats(-1e4, 1e4), st.just(-INF))


def answers(rows, dtype=np.float64):
    outputs = np.asarray(rows, dtype=dtype)
    return Answers(outputs=outputs, logits=outputs.astype(np.float64))


def run_of(original, bounded, dtype=np.float64):
    return ModelRun(original=answers(original, dtype), bounded=answers(bounded, dtype))


def soft_answers(logits, dtype):
    """A model that ends in a softmax, whose logits stand beside its output."""
    logits = np.asarray(logits, dtype=np.float64)
    return Answers(outputs=softmax(logits).astype(dtype), logits=logits)


@st.composite
def logits(draw, n_rows=None, n_classes=None, elements=ANY):
    shape = (n_rows or draw(st.integers(1, 5)), n_classes or draw(st.sampled_from([2, 3, 10])))
    return draw(hnp.arrays(np.float64, shape, elements=elements))


@st.composite
def runs(draw):
    """Two models' rows, and which are corrected, and which of these excluded. Each bounded row answers something."""
    original = draw(logits())
    bounded = draw(logits(*original.shape))
    bounded[:, draw(st.integers(0, original.shape[1] - 1))] = draw(st.floats(-1e4, 1e4))
    dtype, probabilities = draw(st.sampled_from(FLOATS)), draw(st.booleans())
    original[:, 0] = np.where(np.isneginf(original.max(axis=1)), 0, original[:, 0])
    of = soft_answers if probabilities else answers
    corrected = draw(hnp.arrays(bool, len(original)))
    excluded = corrected & draw(hnp.arrays(bool, len(original)))
    return ModelRun(original=of(original, dtype), bounded=of(bounded, dtype)), corrected, excluded, probabilities


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


def test_rows_are_corrected_only_where_asked_and_the_class_ruled_out_only_where_excluded():
    run = run_of([[9, 1, 0]] * 3, [[4, 1, 0]] * 3, np.float32)
    found = correct(
        run, corrected=np.array([False, True, True]), excluded=np.array([False, False, True]), probabilities=False
    )
    assert found.outputs.tolist() == [[9, 1, 0], [4, 1, 0], [0, 1, 0]]
    assert found.logits.tolist() == [[9, 1, 0], [4, 1, 0], [-INF, 1, 0]]


def test_ruled_out_probability_goes_to_the_other_classes_in_proportion():
    run = ModelRun(
        original=soft_answers(np.log([[0.9, 0.05, 0.05]]), np.float32),
        bounded=soft_answers(np.log([[0.6, 0.3, 0.1]]), np.float32),
    )
    found = correct(run, corrected=np.array([True]), excluded=np.array([True]), probabilities=True)
    np.testing.assert_allclose(found.outputs, [[0, 0.75, 0.25]], rtol=1e-6)


def everything(run, *, probabilities=False):
    all_rows = np.ones(len(run.original.outputs), dtype=bool)
    return correct(run, corrected=all_rows, excluded=all_rows, probabilities=probabilities).outputs


def test_a_ruled_out_class_that_is_already_last_keeps_its_place():
    assert everything(run_of([[9, 1, 0]], [[-7, 1, 0]])).tolist() == [[-7, 1, 0]]


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("others", [0.0, 1.0, -3.0, -60000.0])
def test_a_class_ruled_out_among_equals_falls_one_step_below_them(dtype, others):
    (found,) = everything(run_of([[9, 0, 0]], [[others] * 3], dtype))
    assert found[0] == np.nextafter(dtype(others), dtype(-INF)) < found[1] == found[2] == others


@pytest.mark.parametrize("dtype", FLOATS)
def test_others_at_the_lowest_number_still_come_before_the_class_ruled_out(dtype):
    lowest = np.finfo(dtype).min
    (found,) = everything(run_of([[9, 0]], [[5, lowest]], dtype))
    assert found.tolist() == [-INF, lowest]


@pytest.mark.parametrize("probabilities", [False, True])
def test_where_no_other_class_is_possible_all_others_become_equally_likely(probabilities):
    of = soft_answers if probabilities else answers
    run = ModelRun(original=of([[9, 0, 0]], np.float32), bounded=of([[4, -INF, -INF]], np.float32))
    (found,) = everything(run, probabilities=probabilities)
    assert found[0] < found[1] == found[2]
    assert np.isfinite(found).all()


@pytest.mark.parametrize("probabilities", [False, True])
def test_a_thousand_equal_classes_in_half_precision_leave_the_ruled_out_one_last(probabilities):
    of = soft_answers if probabilities else answers
    run = ModelRun(original=of(np.eye(1000)[:5] * 20, np.float16), bounded=of(np.zeros((5, 1000)), np.float16))
    found = everything(run, probabilities=probabilities)
    assert found.dtype == np.float16
    assert (found[np.arange(5), np.arange(5)] < np.sort(found, axis=1)[:, 1]).all()


def test_the_class_ruled_out_is_the_one_that_a_caller_reads_off_the_original():
    # In half precision both probabilities round to .5: the caller sees class 0, though logit 1 leads.
    original = soft_answers([[1.0, 1.00001]], np.float16)
    bounded = soft_answers([[1.0, 0.0]], np.float16)
    assert original.outputs.tolist() == [[0.5, 0.5]]
    assert everything(ModelRun(original=original, bounded=bounded), probabilities=True).tolist() == [[0, 1]]


@given(drawn=runs())
def test_rows_that_are_not_corrected_are_the_originals_bit_for_bit(drawn):
    run, corrected, excluded, probabilities = drawn
    found = correct(run, corrected=corrected, excluded=excluded, probabilities=probabilities).outputs
    assert found.dtype == run.original.outputs.dtype
    assert found[~corrected].tobytes() == run.original.outputs[~corrected].tobytes()


@given(drawn=runs())
def test_rows_that_are_corrected_and_not_excluded_are_the_bounded_models_bit_for_bit(drawn):
    run, corrected, excluded, probabilities = drawn
    rows = corrected & ~excluded
    found = correct(run, corrected=corrected, excluded=excluded, probabilities=probabilities).outputs
    assert found[rows].tobytes() == run.bounded.outputs[rows].tobytes()


@given(drawn=runs())
@example(drawn=(run_of([[1, 0]], [[2, -INF]]), np.array([True]), np.array([True]), False))
@example(drawn=(run_of([[1, 0]], [[-65504, -65504]], np.float16), np.array([True]), np.array([True]), False))
def test_an_excluded_class_is_never_answered_again(drawn):
    run, corrected, excluded, probabilities = drawn
    found = correct(run, corrected=corrected, excluded=excluded, probabilities=probabilities)
    predicted = predicted_class(run.original.outputs)[excluded]
    rows = found.outputs[excluded]
    assert (predicted_class(rows) != predicted).all()
    assert (predicted_class(found.logits[excluded]) != predicted).all()
    assert (rows[np.arange(len(rows)), predicted] == rows.min(axis=1)).all()


@given(drawn=runs())
def test_probabilities_after_an_exclusion_are_probabilities(drawn):
    run, corrected, excluded, _ = drawn
    softened = ModelRun(
        original=soft_answers(run.original.logits, np.float32), bounded=soft_answers(run.bounded.logits, np.float32)
    )
    found = correct(softened, corrected=corrected, excluded=excluded, probabilities=True).outputs[excluded]
    predicted = predicted_class(softened.original.outputs)[excluded]
    assert (found[np.arange(len(found)), predicted] == 0).all()
    assert ((found >= 0) & (found <= 1)).all()
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-5)


@given(drawn=runs())
def test_correcting_leaves_the_run_as_it_was(drawn):
    run, corrected, excluded, probabilities = drawn
    before = [a.tobytes() for part in (run.original, run.bounded) for a in (part.outputs, part.logits)]
    correct(run, corrected=corrected, excluded=excluded, probabilities=probabilities)
    assert [a.tobytes() for part in (run.original, run.bounded) for a in (part.outputs, part.logits)] == before
