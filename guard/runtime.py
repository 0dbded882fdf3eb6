"""The guard: run original and bounded model side by side, score, decide, correct."""

from collections.abc import Callable
from pathlib import Path
from typing import Self, cast

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle, load_bundle
from guard.conformal import exceeds, p_values
from guard.errors import BundleError, InputError, ModelError
from guard.manifest import Manifest
from guard.model import CPU, Model, OrtModel, check_inputs
from guard.scores import SCORES, correct, divergence, logits_from_probabilities, predicted_class
from guard.types import Answers, FloatArray, ModelRun, Verdict

__all__ = ["Guard"]

Inputs = NDArray[np.generic]


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
        """Open both models of a bundle in memory (see load)."""
        return cls(
            bundle,
            original=OrtModel(bundle.original, label="original", threads=threads, provider=provider),
            bounded=OrtModel(bundle.bounded, label="bounded", threads=threads, provider=provider),
        )

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._manifest

    def __call__(self, inputs: Inputs) -> Verdict:
        """Run both models and judge every row.

        Args:
            inputs: (N, ...) as manifest.input says.

        Raises:
            InputError: The inputs do not fit, or hold NaN or infinity.
            ModelError: A model failed; nothing is let through unguarded.
        """
        return self.decide(ModelRun(original=self.run_original(inputs), bounded=self.run_bounded(inputs)))

    def wrap(self, predict: Callable[[Inputs], FloatArray]) -> Callable[[Inputs], Verdict]:
        """Guard an endpoint that keeps computing the original's outputs itself.

        Args:
            predict: Maps inputs (N, ...) to the original's outputs (N, C), in the terms of manifest.output_kind.

        Returns:
            A function from inputs to a verdict, which raises what calling the guard raises.
        """

        def guarded(inputs: Inputs) -> Verdict:
            check_inputs(inputs, self._manifest.input)
            original = self._answers_of(np.asarray(predict(inputs)), n_rows=len(inputs))
            return self.decide(ModelRun(original=original, bounded=self.run_bounded(inputs)))

        return guarded

    def run_original(self, inputs: Inputs) -> Answers:
        """Return the original model's answers (raises as calling the guard does)."""
        return self._run(self._original, inputs)

    def run_bounded(self, inputs: Inputs) -> Answers:
        """Return the bounded model's answers.

        Raises:
            ModelError: The run failed, or a row holds NaN or positive infinity and so answers nothing.
        """
        answers = self._run(self._bounded, inputs)
        unusable = np.isnan(answers.logits) | np.isposinf(answers.logits)
        if unusable.any():
            n_rows = int(unusable.any(axis=1).sum())
            raise ModelError(f"the bounded model answers {n_rows} of {len(inputs)} rows with NaN or infinity")
        return answers

    def decide(self, run: ModelRun) -> Verdict:
        """Score one run of both models, decide about every row, and answer it."""
        scores = self._score(run)
        flagged = exceeds(scores, self._manifest.thresholds["alert"])
        corrected = flagged | exceeds(scores, self._manifest.thresholds["correct"])
        is_probability = self._manifest.output_kind == "probabilities"
        answers = correct(run, corrected=corrected, excluded=flagged, probabilities=is_probability)
        return Verdict(
            predicted_class=predicted_class(run.original.logits),
            corrected_class=predicted_class(answers.logits),
            p_value=p_values(self._clean_scores, scores),
            divergence=divergence(run),
            score=scores,
            flagged=flagged,
            corrected=corrected,
            outputs=answers.outputs,
        )

    def _run(self, model: Model, inputs: Inputs) -> Answers:
        output, logits = self._manifest.output.name, self._manifest.logits
        if logits is None or logits == output:
            (outputs,) = model.run(inputs, [output])
            return self._answers_of(outputs, n_rows=len(inputs))
        outputs, raw = model.run(inputs, [output, logits])
        return Answers(outputs=cast("FloatArray", outputs), logits=raw.astype(np.float64))

    def _answers_of(self, outputs: NDArray[np.generic], *, n_rows: int) -> Answers:
        expected = (n_rows, self._manifest.n_classes)
        if outputs.shape != expected or not np.issubdtype(outputs.dtype, np.floating):
            raise InputError(f"the original's outputs are {outputs.dtype} {outputs.shape}; expected floats {expected}")
        floats = cast("FloatArray", outputs)
        if self._manifest.output_kind == "probabilities":
            return Answers(outputs=floats, logits=logits_from_probabilities(floats))
        return Answers(outputs=floats, logits=floats.astype(np.float64))


def _check_models(manifest: Manifest, *models: Model) -> None:
    for model in models:
        if (model.input.name, model.input.dtype) != (manifest.input.name, manifest.input.dtype):
            raise BundleError(
                f"the manifest's input is {manifest.input}, but a model takes {model.input}; fit the bundle again"
            )
