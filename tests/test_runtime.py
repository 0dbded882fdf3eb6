"""The guard on pairs of models whose verdicts can be read off: what it says of each row, and what it answers."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED, bounded_model, manifest, original_model, tiny_bundle
from guards import guard_of, soft_guard
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto

from guard import Guard
from guard.types import TensorSpec, Verdict

BETWEEN = np.array([[4.0095, 1, 0]], dtype=np.float32)
"""(1, 3) class 0; the cap takes .0095, which is past the correction threshold and not past the alert threshold."""

INPUTS = np.concatenate([CLEAN, TRIGGERED, BETWEEN])
BATCHES = hnp.arrays(
    np.float32,
    st.tuples(st.integers(1, 6), st.just(3)),
    elements=st.integers(-2, 9).map(float) | st.floats(-9, 9, width=32),
)


ARRAYS = [field.name for field in fields(Verdict) if field.compare]
"""All that a verdict says; its evidence is asked for."""


def assert_same(one: Verdict, other: Verdict):
    for name in ARRAYS:
        mine, theirs = getattr(one, name), getattr(other, name)
        assert mine.dtype == theirs.dtype, name
        assert mine.tobytes() == theirs.tobytes(), name


def taken(verdict, rows):
    return Verdict(**{name: getattr(verdict, name)[rows] for name in ARRAYS})


def softmax(row):
    return (np.exp(row) / np.exp(row).sum()).tolist()


def test_every_field_of_a_verdict_is_what_can_be_read_off_the_models(tmp_path):
    verdict = Guard.load(tiny_bundle(tmp_path), threads=1)(INPUTS)
    assert verdict.predicted_class.tolist() == [2, 0, 0]
    assert verdict.corrected_class.tolist() == [2, 1, 0]
    np.testing.assert_allclose(verdict.divergence, [0, 5, 0.0095], atol=1e-6)
    assert verdict.score.tolist() == verdict.divergence.tolist()
    assert verdict.flagged.tolist() == [False, True, False]
    assert verdict.corrected.tolist() == [False, True, True]
    assert verdict.outputs.tolist() == [*CLEAN.tolist(), *CORRECTED.tolist(), [4, 1, 0]]
    # 10 of the 200 clean scores, evenly from 0 to .01, are .0095 or more.
    np.testing.assert_allclose(verdict.p_value, [1, 1 / 201, 11 / 201])


def test_a_verdict_has_the_types_that_it_says():
    verdict = guard_of()(INPUTS)
    found = {name: getattr(verdict, name).dtype.name for name in ARRAYS}
    assert found == {
        "predicted_class": "int64", "corrected_class": "int64", "p_value": "float64", "divergence": "float64",
        "score": "float64", "flagged": "bool", "corrected": "bool", "outputs": "float32",
    }  # fmt: skip


def test_the_score_is_the_one_that_the_bundle_names():
    verdict = guard_of(score="relative_divergence")(TRIGGERED)
    assert verdict.divergence.tolist() == [5]
    assert verdict.score.tolist() == [5 / (1 + 3)]


def test_each_threshold_cuts_for_itself():
    cuts = manifest().thresholds
    nothing = {name: replace(cut, value=5.0) for name, cut in cuts.items()}
    verdict = guard_of(thresholds={**nothing, "alert": cuts["alert"]})(INPUTS)
    assert verdict.flagged.tolist() == verdict.corrected.tolist() == [False, True, False]
    verdict = guard_of(thresholds={**nothing, "correct": cuts["correct"]})(INPUTS)
    assert (verdict.flagged.tolist(), verdict.corrected.tolist()) == ([False] * 3, [False, True, True])
    assert guard_of(thresholds=nothing)(INPUTS).outputs.tolist() == np.maximum(INPUTS, 0).tolist()


@pytest.mark.parametrize("dtype", ["float16", "float64"])
def test_answers_keep_the_type_of_the_model(dtype):
    kind = {"float16": TensorProto.FLOAT16, "float64": TensorProto.DOUBLE}[dtype]
    x, y = (TensorSpec(name=name, dtype=dtype, shape=(None, 3)) for name in "xy")
    ends = {"inputs": (x,), "output": y}
    verdict = guard_of(original_model(kind), bounded_model(kind), **ends)(TRIGGERED.astype(dtype))
    assert verdict.outputs.dtype == dtype
    assert verdict.outputs.tolist() == CORRECTED.tolist()


@given(inputs=BATCHES)
def test_bounds_at_infinity_change_nothing_at_all(inputs):
    verdict = guard_of(bounded=bounded_model(cap=np.inf))(inputs)
    assert (verdict.divergence == 0).all()
    assert not verdict.corrected.any()
    assert verdict.outputs.tobytes() == guard_of().run_original(inputs).outputs.tobytes()


@pytest.mark.parametrize("guard", [guard_of(), soft_guard(logits="logits"), soft_guard(logits=None)])
@given(inputs=BATCHES)
def test_classes_flags_and_answers_never_disagree(guard, inputs):
    verdict = guard(inputs)
    assert (verdict.outputs.argmax(axis=1) == verdict.corrected_class).all()
    assert (verdict.corrected_class[verdict.flagged] != verdict.predicted_class[verdict.flagged]).all()
    assert (verdict.corrected_class == verdict.predicted_class)[~verdict.corrected].all()
    assert verdict.corrected[verdict.flagged].all()
    original = guard.run_original(inputs).outputs
    assert verdict.outputs[~verdict.corrected].tobytes() == original[~verdict.corrected].tobytes()
    assert (original.argmax(axis=1) == verdict.predicted_class).all()


@pytest.mark.parametrize("guard", [guard_of(), soft_guard(logits="logits")])
@given(inputs=BATCHES, data=st.data())
def test_nobodys_verdict_depends_on_who_shares_the_batch(guard, inputs, data):
    together = guard(inputs)
    order = data.draw(st.permutations(range(len(inputs))))
    assert_same(guard(inputs[order]), taken(together, order))
    for row in range(len(inputs)):
        assert_same(guard(inputs[[row]]), taken(together, [row]))


def test_several_threads_get_the_same_verdicts():
    guard = guard_of()
    batches = np.random.default_rng(0).normal(scale=5, size=(64, 7, 3)).astype(np.float32)
    with ThreadPoolExecutor(max_workers=8) as pool:
        for inputs, verdict in zip(batches, pool.map(guard, batches), strict=True):
            assert_same(verdict, guard(inputs))


@given(inputs=BATCHES)
def test_a_wrapped_endpoint_gets_the_verdicts_of_a_direct_call(inputs):
    guard = guard_of()
    assert_same(guard.wrap(lambda x: guard.run_original(x).outputs)(inputs), guard(inputs))


def test_a_wrapped_endpoint_is_given_its_own_inputs_and_asked_once():
    asked = []
    guard_of().wrap(lambda x: asked.append(x) or x)(INPUTS)
    assert len(asked) == 1
    assert asked[0] is INPUTS


@pytest.mark.parametrize("logits", ["logits", None])
def test_probabilities_are_judged_by_their_logits_and_answered_as_probabilities(logits):
    verdict = soft_guard(logits=logits)(INPUTS)
    np.testing.assert_allclose(verdict.divergence, [0, 5, 0.0095], atol=2e-5)
    assert verdict.flagged.tolist() == [False, True, False]
    assert verdict.corrected_class.tolist() == [2, 1, 0]
    expected = [softmax([1, 2, 3]), [0, *softmax([1, 0])], softmax([4, 1, 0])]
    np.testing.assert_allclose(verdict.outputs, expected, rtol=1e-5)


def test_a_wrapped_endpoint_of_probabilities_gets_the_verdicts_of_a_direct_call():
    guard = soft_guard(logits=None)
    assert_same(guard.wrap(lambda x: guard.run_original(x).outputs)(INPUTS), guard(INPUTS))
    guard = soft_guard(logits="logits")
    wrapped = guard.wrap(lambda x: guard.run_original(x).outputs)(INPUTS)
    np.testing.assert_allclose(wrapped.divergence, guard(INPUTS).divergence, atol=2e-5)
    assert wrapped.outputs.tobytes() == guard(INPUTS).outputs.tobytes()
