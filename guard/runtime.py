"""The guard: run original and bounded model, score, decide, correct."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Self

import numpy as np

from guard.bundle import Bundle, load_bundle
from guard.conformal import exceeds, p_values
from guard.corrector import Corrector
from guard.detector import head_run, one_pass_scores
from guard.errors import InputError
from guard.evidence import Witness
from guard.input_checks import check_inputs
from guard.manifest import Manifest
from guard.model import CPU, Model
from guard.monitor import Monitor, Reference
from guard.pair import ModelPair, misfit, open_models
from guard.rows import n_rows
from guard.scores import SCORES, correct, divergence, predicted_class
from guard.types import Answers, BoolArray, FloatArray, Inputs, ModelRun, Observed, Verdict

__all__ = ["Guard"]


class Guard:
    """Judges batches of inputs and answers them.

    Each row is judged by itself: nobody's verdict depends on who shares the batch. A guard may be called from several
    threads at once.

    Args:
        bundle: What calibration found.
        original: The original model; where the bundle has a detector, the observed original.
        bounded: The bounded model, which corrects, and without a detector also detects.
    """

    def __init__(self, bundle: Bundle, *, original: Model, bounded: Model) -> None:
        self._manifest = bundle.manifest
        self._reference = Reference(scores=bundle.clean_scores, predicted_class=bundle.clean_classes)
        self._written_at = bundle.written_at
        self._detector = bundle.detector
        self._pair = ModelPair(bundle.manifest, original=original, bounded=bounded)
        self._corrector = None if bundle.detector is None else Corrector(bundle, bundle.detector, self._pair)
        self._witness = None if bundle.detector is None else Witness(bundle.manifest, bundle.detector, self._pair)

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
        original, bounded = open_models(bundle, threads=threads, provider=provider)
        return cls(bundle, original=original, bounded=bounded)

    @property
    def manifest(self) -> Manifest:
        """What the bundle says of itself."""
        return self._manifest

    @property
    def written_at(self) -> float | None:
        """When its bundle was written, in seconds since the epoch; None of a bundle that never was on disk."""
        return self._written_at

    def monitor(self) -> Monitor:
        """Return a new monitor that gathers evidence of this guard's verdicts, for ``monitor.update(verdict)``."""
        return Monitor(self._reference, n_classes=self._manifest.n_classes)

    def __call__(self, inputs: Inputs) -> Verdict:
        """Judge every row and answer it.

        Args:
            inputs: As manifest.inputs says: one array (N, ...) for a model with one input, for any model a mapping
                from input names to arrays of one N.

        Raises:
            InputError: The inputs do not fit, or hold NaN or infinity.
            ModelError: A model failed; nothing is let through unguarded.
        """
        return self.judge(inputs, self.run_original(inputs))

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
            observed = None if self._detector is None else self.run_original(inputs).observed
            return self.judge(inputs, self.answers_from(inputs, outputs, observed=observed))

        return guarded

    def answers_from(self, inputs: Inputs, outputs: FloatArray, *, observed: Observed | None = None) -> Answers:
        """Return as answers, for judging, outputs of the original that somebody else computed.

        Args:
            inputs: As manifest.inputs says.
            outputs: (N, C) what the original gives for them, as wrap takes it.
            observed: Where the bundle has a detector, what run_original observed of the same inputs.

        Raises:
            InputError: The outputs are no floats (N, C).
        """
        if problem := misfit(outputs, (n_rows(inputs), self._manifest.n_classes)):
            raise InputError(f"the original's outputs, as predict gives them, are {problem}")
        return Answers(outputs=outputs, logits=self._pair.logits_of(outputs), observed=observed)

    def run_original(self, inputs: Inputs) -> Answers:
        """Return the original model's answers, all that judging needs (raises as calling the guard does)."""
        return self._pair.run_original(inputs)

    def run_bounded(self, inputs: Inputs) -> Answers:
        """Return the bounded model's answers.

        Raises:
            InputError: The inputs do not fit, or hold NaN or infinity.
            ModelError: The run failed, or a row answers nothing: it holds NaN or positive infinity, or rules out all.
        """
        return self._pair.run_bounded(inputs)

    def judge(self, inputs: Inputs, original: Answers) -> Verdict:
        """Judge and answer every row, given what run_original returned for these inputs (raises as run_bounded)."""
        if self._detector is None or self._corrector is None or self._witness is None:
            return self.decide(ModelRun(original=original, bounded=self.run_bounded(inputs)))
        scores = one_pass_scores(original, self._detector)
        flagged, corrected = self._cut(scores)
        instead = self._corrector(inputs, original, flagged=flagged, corrected=corrected)
        verdict = self._answer(ModelRun(original=original, bounded=instead), scores, divergence(head_run(original)))
        return replace(verdict, evidence_of=partial(self._witness, inputs, original, verdict))

    def decide(self, run: ModelRun) -> Verdict:
        """Judge and answer every row of one run of both models, for a bundle without a detector."""
        scores = SCORES[self._manifest.score](run)
        return self._answer(run, scores, divergence(run))

    def _cut(self, scores: FloatArray) -> tuple[BoolArray, BoolArray]:
        """Return which rows are flagged, and which are corrected."""
        flagged = exceeds(scores, self._manifest.thresholds["alert"])
        return flagged, flagged | exceeds(scores, self._manifest.thresholds["correct"])

    def _answer(self, run: ModelRun, scores: FloatArray, divergences: FloatArray) -> Verdict:
        flagged, corrected = self._cut(scores)
        # A row that holds NaN names no class that could be ruled out.
        excluded = flagged & ~np.isnan(run.original.outputs).any(axis=1)
        is_probability = self._manifest.output_kind == "probabilities"
        answers = correct(run, corrected=corrected, excluded=excluded, probabilities=is_probability)
        return Verdict(
            predicted_class=predicted_class(run.original.outputs),
            corrected_class=predicted_class(answers.outputs),
            p_value=p_values(self._reference.scores, scores),
            divergence=divergences,
            score=scores,
            flagged=flagged,
            corrected=corrected,
            outputs=answers.outputs,
        )
