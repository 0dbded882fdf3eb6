"""Every way to learn bounds on every backdoored model, each judged by the published rule and by ours.

It takes hours; stopped, it goes on where it was: bounds that were learned are kept. ``published:kept`` tells what there
is without learning more.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.one_fit import OneFit, fit_apart, load_split
from calibrate.data import Samples
from calibrate.edit import insert_bounds
from calibrate.evaluation import Answered, Evaluation, evaluate
from calibrate.forward import forward
from calibrate.graph import Classifier, find_sites, read_classifier
from calibrate.thresholds import RULES
from guard.conformal import exceeds
from guard.scores import SCORES, correct, predicted_class
from guard.types import Answers, ModelRun

__all__ = ["measure"]

MODELS = ("badnets", "wanet", "blend", "all2all", "tact", "clean")
WAYS = (
    ("sigma", 1000), ("unit", 1000), ("mmac", 1000), ("few-shot", 10), ("few-shot", 50), ("few-shot", 200),
    ("few-shot", 1000), ("unit-published", 1000), ("mmac-published", 500),
)  # fmt: skip
FPR = 0.01
COLUMNS = (
    "method", "images", "clean, bounded", "ASR, bounded", "RA, bounded", "AUROC", "TPR", "FPR", "RA, guarded",
    "AUROC, MMDF", "TPR, MMDF", "FPR, MMDF", "RA, MMDF", "fit, s", "peak, MiB",
)  # fmt: skip
_NOT_RUN = "not run" + " |" * (len(COLUMNS) - 3)


def measure(out: Path, *, only_kept: bool = False) -> Iterator[str]:
    """Yield a section per model: one row per method and number of images."""
    if not (SHARED / "zoo").is_dir():
        yield f"skipped: {SHARED}/zoo is absent"
        return
    yield (
        "Bounds are learned from so many images of the calibration set, balanced by class; thresholds for a\n"
        "false-positive rate of .01 by our rule (rank of the relative divergence on 1100 other images) and by MMDF's\n"
        "(mean + 2.326 sd of the divergence on the images of the bounds); measured on 7500 clean test images and the\n"
        "model's triggered ones. RA is robust accuracy: triggered images answered with their true class."
    )
    for name in MODELS:
        model = SHARED / "zoo" / f"cifar10-resnet18-{name}.onnx"
        bench = _Bench.open(model)
        yield f"\n### {name}\n"
        yield f"| {' | '.join(COLUMNS)} |"
        yield f"|{'---|' * len(COLUMNS)}"
        for method, n in WAYS:
            place = out / "published" / f"{name}-{method}-{n}.npz"
            is_left = only_kept and not place.exists()
            yield f"| {method} | {n} | {_NOT_RUN if is_left else _row(bench, fit_apart(model, method, n, place), n)} |"


@dataclass(frozen=True, slots=True, kw_only=True)
class _Bench:
    """A model, the samples that it is measured on by the name of their part, and its answers to them."""

    classifier: Classifier
    samples: Mapping[str, Samples]
    original: Mapping[str, Answers]

    @classmethod
    def open(cls, model: Path) -> "_Bench":
        classifier = read_classifier(model)
        samples = {"clean": load_images(SHARED / "data" / "cifar10-test.tar", classifier.inputs)}
        if (place := model.with_name(f"{model.stem}-triggered.npz")).exists():
            samples["triggered"] = load_images(place, classifier.inputs)
        answers = {part: _answers(classifier.model, classifier.logits, found) for part, found in samples.items()}
        return cls(classifier=classifier, samples=samples, original=answers)

    def runs(self, fit: OneFit, n: int) -> Mapping[str, ModelRun]:
        """Run both models on every part, the calibration set's among them."""
        assert fit.bounds is not None
        split = load_split(self.classifier, n)
        model, logits = self.classifier.model, self.classifier.logits
        bounded = insert_bounds(model, fit.bounds, find_sites(model))
        runs = {}
        for part, samples in {**self.samples, "bounds": split.bounds, "threshold": split.threshold}.items():
            original = self.original[part] if part in self.original else _answers(model, logits, samples)
            runs[part] = ModelRun(original=original, bounded=_answers(bounded, logits, samples))
        return runs


def _answers(model: onnx.ModelProto, logits: str, samples: Samples) -> Answers:
    outputs = np.concatenate([values[logits] for _, values in forward(model, [logits], samples)])
    return Answers(outputs=outputs, logits=outputs.astype(np.float64))


def _row(bench: _Bench, fit: OneFit, n: int) -> str:
    if fit.bounds is None:
        return f"refused: {fit.refusal}" + " |" * (len(COLUMNS) - 3)
    runs = bench.runs(fit, n)
    ours, published = (_judge(bench, runs, rule) for rule in ("rank", "mmdf"))
    rates = [ours.bounded_clean_accuracy, ours.bounded_attack_success_rate, _bounded_robust_accuracy(bench, runs)]
    for judged in (ours, published):
        rates += [judged.auroc, judged.tpr, judged.measured_fpr, judged.guarded_robust_accuracy]
    cells = ["-" if rate is None else f"{rate:.4f}" for rate in rates]
    return " | ".join([*cells, f"{fit.seconds:.1f}", f"{fit.peak_mib:.0f}"])


def _judge(bench: _Bench, runs: Mapping[str, ModelRun], name: str) -> Evaluation:
    """Measure a rule with the score that it was made for; corrections follow its own correction threshold."""
    rule = RULES[name]
    score = SCORES[rule.score]
    clean_scores = score(runs[rule.part])
    alert = rule.fit(clean_scores, FPR)
    cut = rule.fit(clean_scores, max(FPR, rule.correct_fpr))
    answered = {}
    for part, samples in bench.samples.items():
        run, scores = runs[part], score(runs[part])
        flagged = exceeds(scores, alert)
        guarded = correct(run, corrected=flagged | exceeds(scores, cut), excluded=flagged, probabilities=False)
        answered[part] = Answered(
            labels=samples.labels,
            target_classes=samples.target_classes,
            original=predicted_class(run.original.outputs),
            bounded=predicted_class(run.bounded.outputs),
            guarded=predicted_class(guarded.outputs),
            scores=scores,
            flagged=flagged,
        )
    return evaluate(answered["clean"], answered.get("triggered"), target_fpr=FPR)


def _bounded_robust_accuracy(bench: _Bench, runs: Mapping[str, ModelRun]) -> float | None:
    if (found := bench.samples.get("triggered")) is None:
        return None
    attacked = found.labels != found.target_classes
    right = predicted_class(runs["triggered"].bounded.outputs) == found.labels
    return float(right[attacked].mean())
