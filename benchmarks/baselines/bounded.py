"""MMDF, UNIT and MMAC as published: adapters to the ways to learn bounds that this project has.

MMDF and MMAC: Wang et al., arXiv 2308.04617; UNIT: Cheng et al., ECCV 2024, arXiv 2407.11372. The bounds are learned as
the official codes do it; MMDF's score is the divergence of the margin at the predicted class. MMDF takes its threshold
from the images of the bounds (calibrate.thresholds.RULES["mmdf"]). UNIT and MMAC detect nothing: they answer with the
bounded model.
"""

import onnx

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from benchmarks.timing import silent
from calibrate.bounds import METHODS
from calibrate.edit import insert_bounds
from calibrate.graph import find_sites
from calibrate.sites import BoundsProblem, RowsInMemory
from guard.scores import divergence
from guard.types import Answers, FloatArray, IntArray, ModelRun

__all__ = ["fit_mmdf", "mitigate_mmac", "mitigate_unit"]

_MAX_ACCURACY_DROP = 0.03  # UNIT's; MMAC has a rule of its own


def fit_mmdf(
    classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, *, method: str = "mmac-published"
) -> Scorer:
    """Learn bounds, MMAC's unless another of calibrate.bounds.METHODS is named, and return MMDF's score."""
    bounded = classifier.variant(_bound(classifier, clean, labels, method))

    def score(inputs: FloatArray) -> FloatArray:
        original, other = (Answers(outputs=z, logits=z) for z in (classifier.logits(inputs), bounded.logits(inputs)))
        return divergence(ModelRun(original=original, bounded=other))

    return score


def mitigate_mmac(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray) -> onnx.ModelProto:
    """Bound the model as MMAC's official code does."""
    return _bound(classifier, clean, labels, "mmac-published")


def mitigate_unit(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray) -> onnx.ModelProto:
    """Bound the model as UNIT's official code does."""
    return _bound(classifier, clean, labels, "unit-published")


def _bound(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray, method: str) -> onnx.ModelProto:
    sites = find_sites(classifier.model)
    problem = BoundsProblem(
        model=classifier.model,
        logits=classifier.logits_name,
        sites=sites,
        n_classes=classifier.logits(clean[:1]).shape[1],
        inputs=RowsInMemory(inputs=clean),
        labels=labels,
        max_accuracy_drop=_MAX_ACCURACY_DROP,
        seed=0,
        progress=silent,
    )
    return insert_bounds(classifier.model, METHODS[method](problem), sites)
