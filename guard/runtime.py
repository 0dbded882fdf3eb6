"""The guard: run original and bounded model side by side, score, decide, correct."""

from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle, load_bundle
from guard.conformal import exceeds, p_values
from guard.errors import BundleError, InputError, ModelError
from guard.input_checks import check_inputs
from guard.manifest import Manifest
from guard.model import CPU, Model, OrtModel
from guard.rows import n_rows
from guard.scores import SCORES, correct, divergence, logits_from_probabilities, predicted_class
from guard.types import Answers, BoolArray, FloatArray, Inputs, ModelRun, Verdict

__all__ = ["Guard"]


class Guard:
    """Judges batches of inputs and answers them.

    Each row is judged by itself: nobody's verdict depends on who shares the batch. A guard may be called from several
    threads at once.

    Args:
        bundle: What calibration found.
        original: The original model.
        bounded: The bounded model, which detects and corrects.
    """

    def __init__(self, bundle: Bundle, *, original: Model, bounded: Model) -> None:
        self._manifest = bundle.manifest
        self._clean_scores = bundle.clean_scores
        self._score = SCORES[bundle.manifest.score]
        self._original = original
        self._bounded = bounded
        _check_models(self._manifest, original, bounded)

    @classmethod
    def load(cls, path: str | Path, *, threads: int | None = None, provider: str = CPU) -> Self:
        """Load a bundle from its folder.

        Args:
            path: The bundle.
            threads: Threads per model run; by default as many as this process may use.
            provider: onnxruntime's execution provider.

        Raises:
            BundleError: The bundle is not to be trusted.
            ModelError: onnxruntime refuses a model.
        """
        return cls.from_bundle(load_bundle(path), threads=threads, provider=provider)

    @classmethod
    def from_bundle(cls, bundle: Bundle, *, threads: int | None = None, provider: str = CPU) -> Self:
        """Open both models of a bundle in memory (raises as load does)."""
        original = OrtModel(bundle.original, label="original", threads=threads, provider=provider)
        bounded = OrtModel(bundle.bounded, label="bounded", threads=threads, provider=provider)
        _check_outputs(bundle.manifest, original=original, bounded=bounded)
        return cls(bundle, original=original, bounded=bounded)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._manifest

    def __call__(self, inputs: Inputs) -> Verdict:
        """Run both models and judge every row.

        Args:
            inputs: As manifest.inputs says: one array (N, ...) for a model with one input, for any model a mapping
                from input names to arrays of one N.

        Raises:
            InputError: The inputs do not fit, or hold NaN or infinity.
            ModelError: A model failed; nothing is let through unguarded.
        """
        return self.decide(ModelRun(original=self.run_original(inputs), bounded=self.run_bounded(inputs)))

    def wrap(self, predict: Callable[[Inputs], FloatArray]) -> Callable[[Inputs], Verdict]:
        """Guard an endpoint that keeps computing the original's outputs itself.

        Args:
            predict: Maps inputs, as they were given, to the original's outputs (N, C), in the terms of
                manifest.output_kind. Where these are probabilities, margins past their precision (103 nats in float32,
                16 in float16) are seen as that large.

        Returns:
            A function from inputs to a verdict, which raises what calling the guard raises, and InputError where
            predict's outputs are no floats (N, C).
        """

        def guarded(inputs: Inputs) -> Verdict:
            check_inputs(inputs, self._manifest.inputs)
            outputs = np.asarray(predict(inputs))
            if problem := _misfit(outputs, (n_rows(inputs), self._manifest.n_classes)):
                raise InputError(f"the original's outputs, as predict gives them, are {problem}")
            original = Answers(outputs=outputs, logits=self._logits_of(outputs))
            return self.decide(ModelRun(original=original, bounded=self.run_bounded(inputs)))

        return guarded

    def run_original(self, inputs: Inputs) -> Answers:
        """Return the original model's answers (raises as calling the guard does)."""
        return self._run(self._original, inputs)

    def run_bounded(self, inputs: Inputs) -> Answers:
        """Return the bounded model's answers.

        Raises:
            ModelError: The run failed, or a row answers nothing: it holds NaN or positive infinity, or rules out all.
        """
        answers = self._run(self._bounded, inputs)
        unusable = ~(_is_answer(answers.outputs) & _is_answer(answers.logits))
        if unusable.any():
            raise ModelError(
                f"the bounded model answers {unusable.sum()} of {len(unusable)} rows with NaN or infinity, the first is"
                f" row {unusable.argmax()}; nothing can be let through on that"
            )
        return answers

    def decide(self, run: ModelRun) -> Verdict:
        """Score one run of both models, decide about every row, and answer it."""
        scores = self._score(run)
        flagged = exceeds(scores, self._manifest.thresholds["alert"])
        corrected = flagged | exceeds(scores, self._manifest.thresholds["correct"])
        # A row that holds NaN names no class that could be ruled out.
        excluded = flagged & ~np.isnan(run.original.outputs).any(axis=1)
        is_probability = self._manifest.output_kind == "probabilities"
        answers = correct(run, corrected=corrected, excluded=excluded, probabilities=is_probability)
        return Verdict(
            predicted_class=predicted_class(run.original.outputs),
            corrected_class=predicted_class(answers.outputs),
            p_value=p_values(self._clean_scores, scores),
            divergence=divergence(run),
            score=scores,
            flagged=flagged,
            corrected=corrected,
            outputs=answers.outputs,
        )

    def _run(self, model: Model, inputs: Inputs) -> Answers:
        name, logits = self._manifest.output.name, self._manifest.logits
        names = [name] if logits in (None, name) else [name, str(logits)]
        found = model.run(inputs, names)
        for tensor, values in zip(names, found, strict=True):
            if problem := _misfit(values, (n_rows(inputs), self._manifest.n_classes)):
                raise ModelError(f"a model answers with {tensor} {problem}; fit the bundle again")
        outputs = cast("FloatArray", found[0])
        raw = self._logits_of(outputs) if len(found) == 1 else found[1].astype(np.float64)
        return Answers(outputs=outputs, logits=raw)

    def _logits_of(self, outputs: FloatArray) -> FloatArray:
        if self._manifest.output_kind == "probabilities":
            return logits_from_probabilities(outputs)
        return outputs.astype(np.float64)


def _misfit(values: NDArray[np.generic], expected: tuple[int, int]) -> str:
    if values.shape == expected and np.issubdtype(values.dtype, np.floating):
        return ""
    return f"{values.dtype} {values.shape}; expected floats {expected}"


def _is_answer(values: FloatArray) -> BoolArray:
    """Return (N,) which rows have a largest entry that is a number."""
    return np.asarray(np.isfinite(values.max(axis=1)))


def _check_models(manifest: Manifest, *models: Model) -> None:
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
        for name in (manifest.output.name, manifest.logits or manifest.output.name):
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
