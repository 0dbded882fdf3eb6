"""What the guard cannot judge is never let through, and a bundle that does not fit its models never loads."""

from dataclasses import replace

import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED, clean_scores, manifest, tiny_bundle
from guards import NumpyModel, always, guard_of, numpy_guard, soft_model

from guard import Guard, InputError, ModelError
from guard.bundle import Bundle
from guard.errors import BundleError
from guard.model import CUDA
from guard.types import TensorSpec


@pytest.mark.parametrize(
    "outputs",
    [np.zeros((2, 3)), np.zeros((3, 2)), np.zeros(3), np.zeros((3, 3), int), np.zeros((3, 3), object), None, "no"],
)
def test_a_wrapped_endpoint_that_gives_no_outputs_is_refused(outputs):
    with pytest.raises(InputError, match=r"the original's outputs, as predict gives them, are .* floats \(3, 3\)"):
        guard_of().wrap(lambda _: outputs)(np.zeros((3, 3), np.float32))


def test_a_wrapped_endpoint_that_gives_nan_is_flagged():
    assert guard_of().wrap(lambda x: np.full(x.shape, np.nan))(CLEAN).flagged.tolist() == [True]


@pytest.mark.parametrize("bad", [[np.nan, 1, 0], [np.nan] * 3, [np.inf, 1, 0], [-np.inf] * 3])
def test_a_bounded_model_that_answers_nothing_lets_nothing_through(bad):
    guard = numpy_guard(always([3, 1, 0], [3, 1, 0]), always([3, 1, 0], bad))
    with pytest.raises(
        ModelError, match="the bounded model answers 1 of 2 rows with NaN or infinity, the first is row 1"
    ):
        guard(np.zeros((2, 3), np.float32))


@pytest.mark.parametrize("spoilt", ["y", "logits"])
def test_nan_in_either_output_of_the_bounded_model_lets_nothing_through(spoilt):
    class Spoilt(NumpyModel):
        def run(self, inputs, names):
            return tuple(np.full((len(inputs), 3), np.nan if name == spoilt else 0.3) for name in names)

    bundle = Bundle(
        manifest=replace(manifest(), output_kind="probabilities", logits="logits"),
        original=b"", bounded=b"", clean_scores=clean_scores(),
    )  # fmt: skip
    guard = Guard(bundle, original=NumpyModel(always([0.5, 0.3, 0.2])), bounded=Spoilt(None))
    with pytest.raises(ModelError, match="the bounded model answers 1 of 1 rows"):
        guard(CLEAN)


@pytest.mark.parametrize(
    ("original", "predicted"), [([np.nan] * 3, 0), ([np.nan, 5, 1], 1), ([5, np.nan, 1], 0), ([1, 5, np.nan], 1)]
)
def test_an_original_that_answers_nan_is_flagged_and_answered_by_the_bounded_model(original, predicted):
    verdict = numpy_guard(always(original), always([3, 1, 0]))(CLEAN)
    assert (verdict.flagged.tolist(), verdict.divergence.tolist()) == ([True], [np.inf])
    assert verdict.predicted_class.tolist() == [predicted]
    assert verdict.p_value.tolist() == [1 / 201]
    assert verdict.outputs.tolist() == [[3, 1, 0]]
    assert verdict.corrected_class.tolist() == [0]


def test_an_original_that_answers_infinity_is_flagged_and_that_class_ruled_out():
    verdict = numpy_guard(always([np.inf, 1, 0]), always([3, 1, 0]))(CLEAN)
    assert (verdict.flagged.tolist(), verdict.corrected_class.tolist()) == ([True], [1])


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_inputs_that_are_no_numbers_are_refused_before_any_model_runs(bad):
    asked = []
    guard, inputs = guard_of(), np.concatenate([CLEAN, TRIGGERED])
    inputs[1, 2] = bad
    for judge in (guard, guard.wrap(lambda x: asked.append(x) or x), guard.run_original, guard.run_bounded):
        with pytest.raises(InputError, match="NaN or infinity in 1 of 2 rows, the first is row 1"):
            judge(inputs)
    assert not asked


@pytest.mark.parametrize("inputs", [CLEAN.astype(float), CLEAN[:, :2], CLEAN[0], CLEAN[:0]])
def test_inputs_that_do_not_fit_are_refused(inputs):
    for judge in (guard_of(), guard_of().wrap(lambda x: x)):
        with pytest.raises(InputError, match="input x has"):
            judge(inputs)


@pytest.mark.parametrize("answer", [np.zeros((1, 2)), np.zeros((2, 3)), np.zeros(3), np.zeros((1, 3), int)])
def test_a_model_whose_answers_do_not_fit_is_a_model_error(answer):
    right = always([3, 1, 0])
    for models in ((lambda _: answer, right), (right, lambda _: answer)):
        with pytest.raises(ModelError, match=r"a model answers with y .* expected floats \(1, 3\)"):
            numpy_guard(*models)(CLEAN)


SPEC = TensorSpec(name="y", dtype="float32", shape=(None, 3))
OTHER_OUTPUTS = [
    {"output": replace(SPEC, name="z")},
    {"logits": "z"},
    {"output": replace(SPEC, dtype="float64")},
    {"output": replace(SPEC, shape=(None, 4))},
]
OTHER_INPUTS = [
    {"inputs": (replace(SPEC, name="x", **{k: v}),)} for k, v in (("dtype", "float16"), ("shape", (None, 4)))
]


@pytest.mark.parametrize("changes", [*OTHER_OUTPUTS, *OTHER_INPUTS, {"inputs": (SPEC,)}])
def test_a_manifest_that_does_not_describe_the_models_is_refused_at_loading(changes):
    with pytest.raises(BundleError, match=r"the manifest.* model .*fit the bundle again"):
        guard_of(**changes)


def test_a_logits_output_that_only_the_original_has_is_refused_at_loading():
    with pytest.raises(BundleError, match="the output 'logits', but the bounded model gives y, other"):
        guard_of(soft_model(np.inf), soft_model(4.0, name="other"), output_kind="probabilities", logits="logits")


def test_a_bundle_whose_model_is_none_is_refused_at_loading(tmp_path, capfd):
    with pytest.raises(ModelError, match="cannot load the bounded model"):
        Guard.load(tiny_bundle(tmp_path, bounded=b"no model"))


def test_a_guard_says_what_its_bundle_says_of_itself(tmp_path):
    assert Guard.load(tiny_bundle(tmp_path, name="mine")).manifest.model["name"] == "mine"


def test_a_guard_is_loaded_on_the_provider_asked_for_or_not_at_all(tmp_path, capfd):
    try:
        told = Guard.load(tiny_bundle(tmp_path), provider=CUDA)._bounded._session.get_providers()[0]
    except ModelError as error:
        told = str(error)
    assert CUDA in told
