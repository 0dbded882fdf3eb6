"""The steps of an inspection in order: lint, suspicion, BAN, MESA; as deep as asked for and as the data allow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import numpy as np

from calibrate.data import Preprocessing, Samples, load_samples
from calibrate.differentiable import check_device
from calibrate.draft import described, versions
from calibrate.graph import Classifier, find_sites, read_classifier
from calibrate.inspection import ban_findings, mesa
from calibrate.inspection.ban import BanFindings, detect_ban
from calibrate.inspection.inspection import Depth, Inspection, NotLookedAt
from calibrate.inspection.lint import lint_model
from calibrate.inspection.lint_finding import LintFinding
from calibrate.inspection.mesa import MesaFindings, recover_triggers
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.suspicion import SuspicionFindings, score_channels
from calibrate.inspection.verdict import MesaComparison, judge, weigh
from calibrate.labels import agreement_of, labels_or_predicted
from calibrate.sites import Progress
from guard.errors import CalibrationError

__all__ = ["DEPTHS", "LEAST_SAMPLES", "PUBLISHED", "InspectSettings", "Looks", "inspect_model", "look_quickly"]

DEPTHS: Mapping[Depth, tuple[str, ...]] = MappingProxyType({
    "quick": ("suspicion",),
    "standard": ("suspicion", "ban"),
    "full": ("suspicion", "ban", "mesa"),
})  # fmt: skip
"""What is looked at besides the lint, in this order."""

LEAST_SAMPLES: Mapping[str, int] = MappingProxyType(
    {
        "suspicion": 2,
        "ban": ban_findings.LEAST_SAMPLES,
        "mesa": mesa.LEAST_SAMPLES,
    }
)
"""How many clean samples each look takes."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectSettings:
    """What the caller of an inspection may choose.

    Args:
        depth: How deep to look.
        preprocessing: How images become inputs.
        limit: Use at most this many samples.
        seed: Of everything drawn at random.
        device: Where gradients are computed.
    """

    depth: Depth = "standard"
    preprocessing: Preprocessing
    limit: int | None = 5000
    seed: int = 0
    device: str = "cpu"


@dataclass(frozen=True, slots=True, kw_only=True)
class Looks:
    """The ways to look, one function each.

    Args:
        suspicion: Scores channels and classes.
        ban: Looks for a class that noise drives the model to.
        mesa: Recovers triggers for a class.
    """

    suspicion: Callable[[InspectionProblem], SuspicionFindings]
    ban: Callable[[InspectionProblem], BanFindings]
    mesa: Callable[[InspectionProblem, int], MesaFindings]


PUBLISHED = Looks(suspicion=score_channels, ban=detect_ban, mesa=recover_triggers)


def inspect_model(
    model: str | Path, data: str | Path, settings: InspectSettings, progress: Progress, *, looks: Looks = PUBLISHED
) -> Inspection:
    """Look for a backdoor in a model that somebody else trained.

    Args:
        model: An ONNX classifier.
        data: Clean samples (see calibrate.data.load_samples).
        settings: How to look.
        progress: Told how far the work is.
        looks: How each look is taken.

    Returns:
        What was found, the verdict, and what was not looked at.

    Raises:
        InputError: The model or the data cannot be used.
        CalibrationError: The model carries bounds already.
    """
    check_device(settings.device)
    classifier = read_classifier(model)
    lint = lint_model(classifier.model, source=classifier.source, dropped=classifier.dropped)
    samples = _load(data, classifier, settings, progress)
    agreement = agreement_of(classifier, samples, device=settings.device)
    left = dict(_left_by_data(samples, settings))
    problem = _problem(classifier, samples, settings, progress, left)
    suspicion = _take("suspicion", left, lambda: looks.suspicion(problem))
    ban = _take("ban", left, lambda: looks.ban(problem))
    triggers = _take("mesa", left, lambda: _compare(problem, lint, suspicion, ban, looks))
    return Inspection(
        model=described(classifier),
        verdict=judge(weigh(lint, suspicion, ban, triggers)),
        lint=lint,
        suspicion=suspicion,
        ban=ban,
        mesa=triggers,
        not_looked_at=tuple(NotLookedAt(look=look, reason=left[look]) for look in DEPTHS["full"] if look in left),
        depth=settings.depth,
        n_samples=len(samples),
        n_skipped=len(samples.skipped),
        label_agreement=agreement,
        versions=versions(),
        seed=settings.seed,
    )


def look_quickly(classifier: Classifier, problem: InspectionProblem) -> Mapping[str, object]:
    """Return what graph and weights alone come to, as the depth quick judges them: what a manifest keeps of it."""
    lint = lint_model(classifier.model, source=classifier.source, dropped=classifier.dropped)
    judgement = judge(weigh(lint, _take("suspicion", {}, lambda: PUBLISHED.suspicion(problem))))
    return {
        "verdict": judgement.verdict,
        "suspected_target_class": judgement.suspected_target_class,
        "statements": [evidence.statement for evidence in judgement.evidence],
    }


def _load(data: str | Path, classifier: Classifier, settings: InspectSettings, progress: Progress) -> Samples:
    return load_samples(
        data,
        inputs=classifier.inputs,
        n_classes=classifier.n_classes,
        preprocessing=settings.preprocessing,
        limit=settings.limit,
        seed=settings.seed,
        progress=progress,
    )


def _left_by_data(samples: Samples, settings: InspectSettings) -> Iterator[tuple[str, str]]:
    """Yield the looks that cannot be taken, or were not asked for, each with the reason."""
    n = len(samples)
    for look in DEPTHS["full"]:
        deeper = next(depth for depth, looks in DEPTHS.items() if look in looks)
        if look not in DEPTHS[settings.depth]:
            yield look, f"not part of the depth {settings.depth}; ask for --depth {deeper}"
        elif n < LEAST_SAMPLES[look]:
            yield look, f"it takes {LEAST_SAMPLES[look]} clean samples and there are {n}; give more"


def _problem(
    classifier: Classifier, samples: Samples, settings: InspectSettings, progress: Progress, left: dict[str, str]
) -> InspectionProblem:
    """Return what a look may look at; one that there is nothing for is left out."""
    try:
        sites = find_sites(classifier.model)
    except CalibrationError as error:
        sites = ()
        left.setdefault("suspicion", str(error))
    labels = labels_or_predicted(classifier, samples, progress=progress, device=settings.device)
    if len(np.unique(labels)) == 1:
        taken = "are" if samples.labels is not None else "are by the model's answers"
        reason = f"all {len(labels)} clean samples {taken} of class {labels[0]}; give samples of the other classes too"
        left |= {look: reason for look in ("ban", "mesa") if look not in left}
    return InspectionProblem(
        model=classifier.model,
        logits=classifier.logits,
        sites=sites,
        n_classes=classifier.n_classes,
        inputs=samples,
        labels=labels,
        seed=settings.seed,
        progress=progress,
        device=settings.device,
        layout=settings.preprocessing.layout,
    )


def _take(look: str, left: dict[str, str], take: Callable[[], T]) -> T | None:
    """Take a look, unless it is left out; one that cannot be taken is left out with its own reason."""
    if look in left:
        return None
    try:
        return take()
    except CalibrationError as error:
        left[look] = str(error)
        return None


def _compare(
    problem: InspectionProblem,
    lint: Sequence[LintFinding],
    suspicion: SuspicionFindings | None,
    ban: BanFindings | None,
    looks: Looks,
) -> MesaComparison:
    """Recover triggers for the class that most speaks for, suspected or not, and for another one drawn at random."""
    suspected = judge(weigh(lint, suspicion, ban)).suspected_target_class
    if suspected is None and ban is not None:
        suspected = ban.top_class
    if suspected is None and suspicion is not None and suspicion.class_prior is not None:
        suspected = int(suspicion.class_prior.z.argmax())
    if suspected is None:
        raise CalibrationError("no other look names a class to recover triggers for")
    others = [c for c in range(problem.n_classes) if c != suspected]
    control = int(np.random.default_rng((problem.seed, 3)).choice(others))
    return MesaComparison(suspected=looks.mesa(problem, suspected), control=looks.mesa(problem, control))
