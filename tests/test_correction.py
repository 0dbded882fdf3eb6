"""Corrected answers held against the rule that corrects them, and against what a caller reads off a row."""

import numpy as np
import pytest
from hypothesis import example, given
from model_runs import FLOATS, INF, answers, run_of, runs, soft_answers

from guard.scores import correct, predicted_class
from guard.types import ModelRun


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
