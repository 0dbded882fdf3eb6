"""The two models of a bundle as they are run: their answers in one form, whatever their output holds."""

from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.detector import N_NUMBERS
from guard.errors import BundleError, ModelError
from guard.manifest import Manifest
from guard.model import Model, OrtModel
from guard.rows import n_rows
from guard.scores import logits_from_probabilities
from guard.types import Answers, BoolArray, FloatArray, Inputs, Observed

__all__ = ["ModelPair", "misfit", "open_models"]


class ModelPair:
    """The original and the bounded model of one bundle.

    Args:
        manifest: Names the outputs and says what they hold.
        original: The original, or where the bundle has a detector, the observed original.
        bounded: The bounded model.

    Raises:
        BundleError: The models take other inputs than the manifest says.
    """

    def __init__(self, manifest: Manifest, *, original: Model, bounded: Model) -> None:
        self._manifest = manifest
        self._original = original
        self._bounded = bounded
        _check_inputs(manifest, original, bounded)

    def run_original(self, inputs: Inputs) -> Answers:
        """Return the original's answers, and what a detector sees beside them."""
        detector = self._manifest.detector
        if detector is None:
            return self._run(self._original, inputs)[0]
        answers, (profile, head) = self._run(self._original, inputs, [detector["profile"], detector["head"]])
        _check_fit(detector["profile"], profile, (n_rows(inputs), N_NUMBERS * len(detector["sites"])))
        _check_fit(detector["head"], head, (n_rows(inputs), self._manifest.n_classes))
        logits = self.logits_of(head) if self._manifest.logits is None else head.astype(np.float64)
        return replace(answers, observed=Observed(profile=profile, head=logits))

    def run_bounded(self, inputs: Inputs) -> Answers:
        """Return the bounded model's answers.

        Raises:
            ModelError: The run failed, or a row answers nothing: it holds NaN or positive infinity, or rules out all.
        """
        return self.run_bounded_with(inputs, ())[0]

    def run_bounded_with(self, inputs: Inputs, names: Sequence[str]) -> tuple[Answers, Sequence[FloatArray]]:
        """Return the bounded model's answers and further outputs of it (raises as run_bounded does)."""
        answers, shown = self._run(self._bounded, inputs, names)
        unusable = ~(_is_answer(answers.outputs) & _is_answer(answers.logits))
        if unusable.any():
            raise ModelError(
                f"the bounded model answers {unusable.sum()} of {len(unusable)} rows with NaN or infinity, the first is"
                f" row {unusable.argmax()}; nothing can be let through on that"
            )
        return answers, shown

    def logits_of(self, outputs: FloatArray) -> FloatArray:
        """Return (N, C) float64 logits of outputs (N, C), up to a constant per row."""
        if self._manifest.output_kind == "probabilities":
            return logits_from_probabilities(outputs)
        return outputs.astype(np.float64)

    def _run(self, model: Model, inputs: Inputs, more: Sequence[str] = ()) -> tuple[Answers, Sequence[FloatArray]]:
        name, logits = self._manifest.output.name, self._manifest.logits
        names = [name] if logits in (None, name) else [name, str(logits)]
        found = cast("tuple[FloatArray, ...]", model.run(inputs, [*names, *more]))
        for tensor, values in zip(names, found, strict=False):
            _check_fit(tensor, values, (n_rows(inputs), self._manifest.n_classes))
        raw = self.logits_of(found[0]) if len(names) == 1 else found[1].astype(np.float64)
        return Answers(outputs=found[0], logits=raw), found[len(names) :]


def open_models(bundle: Bundle, *, threads: int | None, provider: str) -> tuple[OrtModel, OrtModel]:
    """Open the original, observed where there is a detector, and the bounded model of a bundle in memory.

    Raises:
        BundleError: An output that the manifest names is missing or another.
        ModelError: onnxruntime refuses a model.
    """
    original = OrtModel(bundle.observed or bundle.original, label="original", threads=threads, provider=provider)
    bounded = OrtModel(bundle.bounded, label="bounded", threads=threads, provider=provider)
    _check_outputs(bundle.manifest, original=original, bounded=bounded)
    return original, bounded


def misfit(values: NDArray[np.generic], expected: tuple[int, int]) -> str:
    """Return what is wrong with values that should be floats (N, C); nothing where they are."""
    if values.shape == expected and np.issubdtype(values.dtype, np.floating):
        return ""
    return f"{values.dtype} {values.shape}; expected floats {expected}"


def _check_fit(tensor: str, values: FloatArray, expected: tuple[int, int]) -> None:
    if problem := misfit(values, expected):
        raise ModelError(f"a model answers with {tensor} {problem}; fit the bundle again")


def _is_answer(values: FloatArray) -> BoolArray:
    """Return (N,) which rows have a largest entry that is a number."""
    return np.asarray(np.isfinite(values.max(axis=1)))


def _check_inputs(manifest: Manifest, *models: Model) -> None:
    for model in models:
        taken, stated = ([spec.with_free_batch() for spec in specs] for specs in (model.inputs, manifest.inputs))
        if taken != stated:
            raise BundleError(
                f"the manifest's inputs are {'; '.join(map(str, stated))}, but a model takes"
                f" {'; '.join(map(str, taken))}; fit the bundle again"
            )


def _check_outputs(manifest: Manifest, **models: OrtModel) -> None:
    """Refuse a bundle at its loading rather than at its first request."""
    for label, model in models.items():
        found = {spec.name: spec for spec in model.outputs}
        for name in (manifest.output.name, manifest.logits or manifest.output.name, *_shown(manifest, label)):
            if name not in found:
                raise BundleError(
                    f"the manifest names the output {name!r}, but the {label} model gives"
                    f" {', '.join(found)}; fit the bundle again"
                )
        given = found[manifest.output.name]
        # onnxruntime shows no axes where the graph declares none.
        if given.dtype != manifest.output.dtype or given.shape[1:] not in ((), (None,), (manifest.n_classes,)):
            raise BundleError(
                f"the manifest's output is {manifest.output}, but the {label} model gives {given}; fit the bundle again"
            )


def _shown(manifest: Manifest, label: str) -> Sequence[str]:
    """Return the further outputs that a detector takes of this model."""
    detector = manifest.detector
    if detector is None:
        return ()
    if label == "original":
        return (detector["profile"], detector["head"])
    return (*detector["capped"].values(), *detector["capped_at"].values())
