"""Answer suspicious rows otherwise: on the input with its strangest place hidden, or by the bounded model.

A trigger that sits in one place is best taken away rather than outvoted: where the bounds bite hardest is where it is.
With that place hidden the original itself is asked again, and believed if it names another class than before and
nothing suspicious is left. A trigger that is everywhere leaves the input suspicious; then the bounded model answers, on
the mean over the image and two other views of it, which weaken what is left of the trigger. The first class is ruled
out (MMDF, Wang et al., arXiv 2308.04617). Hiding and views are ours; Februus (Doan et al., ACSAC 2020) cuts triggers
out by gradients and paints the gap with a generator.
"""

from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.bundle import Bundle
from guard.conformal import exceeds
from guard.detector import Detector, one_pass_scores
from guard.input_checks import check_inputs
from guard.pair import ModelPair
from guard.places import excess_map, hide, strongest_place
from guard.rows import each
from guard.scores import predicted_class
from guard.types import Answers, BoolArray, FloatArray, Inputs, IntArray
from guard.views import views

__all__ = ["Corrector"]

_MAX_ROWS = 16  # corrected at a time: what the bounded model shows of its activations is large
_SHARES = (0.1875, 0.3125, 0.4375)  # sides of the squares hidden in turn, of the image's shorter side


class Corrector:
    """Answers rows that are not to be answered by the original as they are.

    Args:
        bundle: Names outputs and thresholds, and has the detector that tells whether a hidden place was the trigger.
        detector: The bundle's.
        pair: Its models.
    """

    def __init__(self, bundle: Bundle, detector: Detector, pair: ModelPair) -> None:
        self._manifest = bundle.manifest
        self._detector = detector
        self._pair = pair
        self._image, self._layout = self._manifest.inputs[0].name, self._manifest.preprocessing["layout"]
        self._maps = list((bundle.manifest.detector or {})["capped_at"].values()) if len(detector.fill) else []

    def __call__(self, inputs: Inputs, original: Answers, *, flagged: BoolArray, corrected: BoolArray) -> Answers:
        """Return what to answer instead.

        Args:
            inputs: N rows.
            original: The original's answers to them.
            flagged: (N,) rows past the alert threshold.
            corrected: (N,) these and rows past the correction threshold.

        Returns:
            Answers to all N rows, the original's where nothing is corrected.
        """
        outputs, logits = original.outputs.copy(), original.logits.copy()
        rows = np.flatnonzero(corrected)
        for start in range(0, len(rows), _MAX_ROWS):
            some = rows[start : start + _MAX_ROWS]
            for answered, answers in self._answer(inputs, some, flagged[some], predicted_class(original.outputs[some])):
                outputs[answered], logits[answered] = answers.outputs, answers.logits
        return Answers(outputs=outputs, logits=logits)

    def _answer(
        self, inputs: Inputs, rows: IntArray, flagged: BoolArray, ruled_out: IntArray
    ) -> Iterator[tuple[IntArray, Answers]]:
        """Yield all rows (n,) with the bounded model's answers, then of those flagged the ones better answered."""
        bounded, maps = self._pair.run_bounded_with(each(lambda array: array[rows], inputs), self._maps)
        yield rows, bounded
        if maps and flagged.any():
            images = check_inputs(inputs, self._manifest.inputs)[self._image][rows[flagged]]
            suspects = _Suspects(
                images=images,
                rows=rows[flagged],
                places=strongest_place(excess_map(maps))[flagged],
                ruled_out=ruled_out[flagged],
                outputs=bounded.outputs[flagged],
                logits=bounded.logits[flagged],
            )
            yield from self._hidden(suspects)

    def _hidden(self, suspects: "_Suspects") -> Iterator[tuple[IntArray, Answers]]:
        """Yield rows that are believed with a place hidden, the least place first; then the others' mean over views."""
        for share in _SHARES:
            if not len(suspects.rows):
                return
            hidden = hide(suspects.images, suspects.places, share=share, fill=self._detector.fill, layout=self._layout)
            answers = self._pair.run_original({self._image: hidden})
            doubted = exceeds(one_pass_scores(answers, self._detector), self._manifest.thresholds["correct"])
            doubted |= predicted_class(answers.outputs) == suspects.ruled_out
            yield suspects.rows[~doubted], Answers(outputs=answers.outputs[~doubted], logits=answers.logits[~doubted])
            suspects = suspects.only(doubted)
        if len(suspects.rows):
            yield suspects.rows, self._seen_otherwise(suspects)

    def _seen_otherwise(self, suspects: "_Suspects") -> Answers:
        """Return the bounded model's answers, each the mean over the image and its views."""
        seen = [self._pair.run_bounded({self._image: view}) for view in views(suspects.images, self._layout)]
        outputs = np.mean([suspects.outputs, *(answers.outputs for answers in seen)], axis=0)
        logits = np.mean([suspects.logits, *(answers.logits for answers in seen)], axis=0)
        return Answers(outputs=outputs, logits=logits)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Suspects:
    """Flagged images (n, ...) and what is known of them.

    Args:
        images: As the model takes them.
        rows: (n,) of the batch.
        places: (n, 2) where the bounds bite hardest.
        ruled_out: (n,) the classes that they may not keep.
        outputs: (n, C) the bounded model's.
        logits: (n, C) the bounded model's.
    """

    images: NDArray[Any]
    rows: IntArray
    places: FloatArray
    ruled_out: IntArray
    outputs: FloatArray
    logits: FloatArray

    def only(self, kept: BoolArray) -> "_Suspects":
        return _Suspects(**{f.name: getattr(self, f.name)[kept] for f in fields(self)})
