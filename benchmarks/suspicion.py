"""Which score finds the backdoor's channels from ten clean images: DLS (ours), CLP (data-free) or ANP (500 images)."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from benchmarks.anp import AnpSettings, Masked, fit_masks, masking
from benchmarks.detection import SHARED
from benchmarks.images import load_images
from benchmarks.pruning import PruningRule, Switchable, keeping, prune
from benchmarks.timing import silent
from calibrate.data import Samples
from calibrate.differentiable import Change, DifferentiableModel
from calibrate.graph import Classifier, find_sites, read_classifier
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.suspicion import TERMS, SuspicionSettings, score_channels
from calibrate.sites import Rows, RowsInMemory
from guard.types import FloatArray, IntArray

__all__ = ["measure"]

MODELS = ("badnets", "blend", "wanet")
N_DRAWS = 20
N_IMAGES = 10
N_TESTED = 2000
N_ANP_IMAGES = 500
N_ABLATION_DRAWS = 5
ANP = AnpSettings(iterations=500)
ANP_THRESHOLDS = np.arange(0, 1, 0.05)  # the official sweep
ANP_DROP = 0.03


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """A backdoored model with what it is calibrated and measured on."""

    name: str
    classifier: Classifier
    switchable: Switchable
    calibration: Samples
    clean: Samples
    triggered: Samples

    @classmethod
    def read(cls, name: str) -> "_Subject":
        path = SHARED / "zoo" / f"cifar10-resnet18-{name}.onnx"
        classifier = read_classifier(path)
        switchable = Switchable(
            model=DifferentiableModel(classifier.model), logits=classifier.logits, sites=find_sites(classifier.model)
        )
        calibration, clean, triggered = (
            load_images(source, classifier.inputs, limit=limit)
            for source, limit in (
                (SHARED / "data" / "cifar10-calibration.tar", None),
                (SHARED / "data" / "cifar10-test.tar", N_TESTED),
                (path.with_name(f"{path.stem}-triggered.npz"), None),
            )
        )
        return cls(
            name=name, classifier=classifier, switchable=switchable, calibration=calibration, clean=clean,
            triggered=triggered,
        )  # fmt: skip

    def problem(self, seed: int, n: int) -> InspectionProblem:
        """Draw n clean images, as many of each class."""
        rows = _balanced(self.calibration.labels, n, seed)
        drawn = self.calibration.take(rows)
        return InspectionProblem(
            model=self.classifier.model, logits=self.classifier.logits, sites=self.switchable.sites,
            n_classes=self.classifier.n_classes, inputs=RowsInMemory(inputs=_arrays(drawn)),
            labels=_known(drawn.labels), seed=seed, progress=silent,
        )  # fmt: skip

    def rates(self, at: Mapping[str, Change]) -> tuple[float, float]:
        """Return attack success rate and clean accuracy under changes."""
        attacked = _known(self.triggered.labels) != _known(self.triggered.target_classes)
        hit = self.switchable.predict(_arrays(self.triggered), at).argmax(axis=1) == self.triggered.target_classes
        right = self.switchable.predict(_arrays(self.clean), at).argmax(axis=1) == self.clean.labels
        return float(hit[attacked].mean()), float(right.mean())


def measure(out: Path) -> Iterator[str]:
    """Yield tables: pruning by each score, its time, the terms one by one, and where the trigger really acts."""
    del out
    if not (SHARED / "zoo").is_dir():
        yield f"skipped: {SHARED}/zoo is absent"
        return
    subjects = [_Subject.read(name) for name in MODELS]
    yield from _pruning_table(subjects)
    yield from _time_table(subjects[0])
    yield from _localisation_table(subjects)


def _pruning_table(subjects: Sequence[_Subject]) -> Iterator[str]:
    yield (
        f"Channels switched off in the order of the score until one of {N_IMAGES} clean images, one per class,"
        f" changes its class or the mean KL exceeds .05, at most 5 % of a layer. Medians over {N_DRAWS} draws of the"
        f" images [quartiles]; measured on {N_TESTED} clean and 1000 triggered test images. ANP: {ANP.iterations}"
        f" iterations on {N_ANP_IMAGES} images, pruned by mask in steps of .05 while they lose at most {ANP_DROP:g}"
        f" of their accuracy. Rows but DLS and CLP: {N_ABLATION_DRAWS} draws.\n"
    )
    yield "| score | model | ASR before | ASR after | absolute drop | relative drop | accuracy drop | channels |"
    yield "|---|---|---|---|---|---|---|---|"
    for label, weights in _SCORES.items():
        for subject in subjects:
            n_draws = N_DRAWS if label in ("DLS", "CLP") else N_ABLATION_DRAWS
            yield _row(label, subject, [_pruned(subject, seed, weights) for seed in range(n_draws)])
    for subject in subjects:
        yield _row("ANP", subject, [_masked(subject)])


def _terms_but(*dropped: str) -> tuple[float, float, float, float]:
    weights = [float(term not in dropped) for term in TERMS]
    return weights[0], weights[1], weights[2], weights[3]


_SCORES = {
    "DLS": _terms_but(),
    "CLP": _terms_but("outgoing", "activation", "relation"),
    **{f"DLS without {term}": _terms_but(term) for term in TERMS},
    "DLS without weight and outgoing": _terms_but("weight", "outgoing"),
    **{f"{term} alone": _terms_but(*(t for t in TERMS if t != term)) for term in TERMS[1:]},
}
"""CLP's bound as DLS uses it, by its robust z-score of the logarithm within the layer."""


def _pruned(subject: _Subject, seed: int, weights: tuple[float, float, float, float]) -> tuple[float, float, int]:
    problem = subject.problem(seed, N_IMAGES)
    scores = score_channels(problem, settings=SuspicionSettings(weights=weights)).scores
    pruned = prune(subject.switchable, scores, _arrays(problem.inputs), PruningRule())
    return *subject.rates(keeping(subject.switchable, pruned)), sum(map(len, pruned.values()))


def _masked(subject: _Subject) -> tuple[float, float, int]:
    """Prune by ANP's masks as far as the accuracy on its own clean images allows."""
    problem, masked = _fit_anp(subject, ANP)
    masks = torch.cat([mask.flatten() for mask in masked.masks.values()])
    kept, before = -1.0, _accuracy(subject, problem, {})
    for threshold in ANP_THRESHOLDS:
        if _accuracy(subject, problem, masking(masked, threshold)) < before - ANP_DROP:
            break
        kept = threshold
    return *subject.rates(masking(masked, kept)), int((masks <= kept).sum())


def _accuracy(subject: _Subject, problem: InspectionProblem, at: Mapping[str, Change]) -> float:
    predicted = subject.switchable.predict(_arrays(problem.inputs), at).argmax(axis=1)
    return float((predicted == problem.labels).mean())


def _fit_anp(subject: _Subject, settings: AnpSettings) -> tuple[InspectionProblem, Masked]:
    problem = subject.problem(0, N_ANP_IMAGES)
    convolved = [node.output[0] for node in subject.classifier.model.graph.node if node.op_type == "Conv"]
    inputs, labels = torch.from_numpy(_arrays(problem.inputs)), torch.from_numpy(problem.labels)
    logits = subject.classifier.logits
    return problem, fit_masks(subject.switchable.model, logits, convolved, inputs, labels, settings)


def _row(label: str, subject: _Subject, runs: Sequence[tuple[float, float, int]]) -> str:
    asr, accuracy = subject.rates({})
    after = np.array([run[0] for run in runs])
    columns = (after, asr - after, (asr - after) / asr, accuracy - np.array([run[1] for run in runs]))
    n = f"{np.median([run[2] for run in runs]):.0f}"
    return f"| {label} | {subject.name} | {asr:.3f} | {' | '.join(map(_quartiles, columns))} | {n} |"


def _time_table(subject: _Subject) -> Iterator[str]:
    score_s = _seconds(lambda: score_channels(subject.problem(0, N_IMAGES)))
    few = replace(ANP, iterations=20)
    step_s = _seconds(lambda: _fit_anp(subject, few)) / few.iterations
    yield "\n| score | seconds |\n|---|---|"
    yield f"| DLS, {N_IMAGES} images | {score_s:.2f} |"
    yield f"| ANP, 2000 iterations, from {few.iterations} | {2000 * step_s:.0f} |"
    yield f"| DLS over ANP | {score_s / (2000 * step_s):.5f} |"


def _localisation_table(subjects: Sequence[_Subject]) -> Iterator[str]:
    yield (
        "\nSpearman's rank correlation, within a site, of the score with the change that the trigger makes, mean"
        f" abs(a(triggered) - a(clean)); mean over sites, and over the last four; medians over {N_DRAWS} draws"
        " [quartiles].\n"
    )
    yield "| score | model | all sites | last four sites |\n|---|---|---|---|"
    changes = {subject.name: _trigger_changes(subject) for subject in subjects}
    for label, weights in _SCORES.items():
        for subject in subjects:
            found = np.array([_agreement(subject, seed, weights, changes[subject.name]) for seed in range(N_DRAWS)])
            columns = (found.mean(axis=1), found[:, -4:].mean(axis=1))
            yield f"| {label} | {subject.name} | {' | '.join(map(_quartiles, columns))} |"


def _agreement(
    subject: _Subject, seed: int, weights: tuple[float, float, float, float], changes: Mapping[str, FloatArray]
) -> list[float]:
    scores = score_channels(subject.problem(seed, N_IMAGES), settings=SuspicionSettings(weights=weights)).scores
    return [float(np.corrcoef(_ranks(scores[t]), _ranks(changes[t]))[0, 1]) for t in scores]


@torch.no_grad()
def _trigger_changes(subject: _Subject) -> dict[str, FloatArray]:
    """Return (K,) mean absolute changes by site, between triggered images and the clean ones that they come from."""
    everything = load_images(SHARED / "data" / "cifar10-test.tar", subject.classifier.inputs)
    clean, triggered = _arrays(everything), _arrays(subject.triggered)
    rows = _origins(triggered, clean)
    sums: dict[str, FloatArray] = {}
    tensors = [site.tensor for site in subject.switchable.sites]
    for start in range(0, len(triggered), 250):
        part = slice(start, start + 250)
        both = (torch.from_numpy(x) for x in (triggered[part], clean[rows[part]]))
        pair = (subject.switchable.model(x, outputs=tensors) for x in both)
        for tensor, a, b in zip(tensors, *pair, strict=True):
            sums[tensor] = sums.get(tensor, 0.0) + np.asarray((a - b).abs().mean(dim=(2, 3)).sum(dim=0))
    return {tensor: total / len(triggered) for tensor, total in sums.items()}


def _origins(triggered: FloatArray, clean: FloatArray) -> IntArray:
    """Return the clean image that each triggered one correlates with most, common patterns taken out."""
    flat = [x.reshape(len(x), -1) - x.reshape(len(x), -1).mean(axis=0) for x in (triggered, clean)]
    first, second = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in flat)
    return np.asarray((first @ second.T).argmax(axis=1))


def _arrays(rows: Rows) -> FloatArray:
    return np.asarray(rows[0 : len(rows)])


def _balanced(labels: IntArray | None, n: int, seed: int) -> IntArray:
    known = _known(labels)
    classes = np.unique(known)
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(np.flatnonzero(known == c))[: n // len(classes)] for c in classes]
    return rng.permutation(np.concatenate(rows))


def _known(values: IntArray | None) -> IntArray:
    if values is None:
        raise ValueError("the data have no classes")
    return values


def _ranks(values: FloatArray) -> IntArray:
    return values.argsort().argsort()


def _quartiles(values: FloatArray) -> str:
    low, middle, high = np.quantile(values, [0.25, 0.5, 0.75])
    return f"{middle:.3f} [{low:.3f}, {high:.3f}]"


def _seconds(action: Callable[[], object]) -> float:
    started = time.perf_counter()
    action()
    return time.perf_counter() - started
