"""Whether a report can be trusted: one check after the other, each passed or failed in words."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from calibrate.evaluation import Evaluation
from calibrate.findings import Findings, Seen
from calibrate.promises import own_rate, promise
from calibrate.proportions import Proportion
from calibrate.thresholds import RULES
from guard.manifest import Manifest

__all__ = ["Check", "checks_of", "warnings_of"]

_HALF = 0.5
_SPREADS = 2  # standard deviations of chance in a measured accuracy drop
_NOISE = 1e-4  # scores below it may come from rounding alone
_CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One reason to trust a report, or not to.

    Args:
        name: What is asked.
        failures: What speaks against it; none where it passed.
        words: What speaks for it.
    """

    name: str
    failures: tuple[str, ...]
    words: str

    @property
    def passed(self) -> bool:
        """Whether nothing speaks against it."""
        return not self.failures


def checks_of(manifest: Manifest, findings: Findings) -> tuple[Check, ...]:
    """Return every check of a fit."""
    found = findings.estimation
    labels = "Labels were given, and the model agrees with most of them."
    learned = "The bounds were learned to the end, and kept from costing more than is allowed."
    estimate = "Triggers were recovered, and the guard was tried on them."
    return tuple(
        Check(name=name, failures=tuple(failures), words=words)
        for name, failures, words in (
            ("Is the whole model guarded?", _left_out(manifest, findings), _guarded(manifest)),
            ("Are there samples enough for the promise?", _too_few(manifest, findings), _promised(manifest, findings)),
            ("Does the promise hold on other clean inputs?", _too_many(manifest, findings), _flagged(findings)),
            ("Were labels given, and are they the model's?", _label_warnings(manifest, findings.held_out), labels),
            ("Is the accuracy kept?", _accuracy_warnings(manifest, findings.held_out), _kept(findings.held_out)),
            ("Did the learning of the bounds end well?", _learning(manifest), learned),
            ("Do the bounds act at all?", _inactive(manifest, findings.seen), _acting(findings.seen)),
            *(() if found is None else [("Is there an estimate of what is caught?", found.warnings(), estimate)]),
            ("Could every image be read?", _skipped(findings), "Nothing was left out."),
        )
    )


def warnings_of(manifest: Manifest, findings: Findings) -> Iterator[str]:
    """Yield what a careful reader should know before trusting the guard: every failure of a check."""
    for check in checks_of(manifest, findings):
        yield from check.failures


def _left_out(manifest: Manifest, findings: Findings) -> Iterator[str]:
    for name in findings.dropped_outputs:
        yield f"The model's output {name!r} is dropped: a guarded model gives {manifest.output.name!r} alone."
    if findings.unranked:
        yield (
            f"{len(findings.unranked)} activations are not bounded, such as {findings.unranked[0]!r}, because their"
            " rank is unknown: export the model with a fixed input size."
        )


def _guarded(manifest: Manifest) -> str:
    return f"All {len(manifest.sites)} activations that were found are bounded, and no output is dropped."


def _too_few(manifest: Manifest, findings: Findings) -> Iterator[str]:
    alert, rule = manifest.thresholds["alert"], str(manifest.calibration.get("rule"))
    if rule == "mmdf":
        yield (
            "The thresholds are mean + z sd of scores on the bounds set, as MMDF was published: their false-positive"
            " rates are names, not promises. Use the rank rule to serve."
        )
    elif rule in RULES and alert.n < (needed := RULES[rule].required(alert.target_fpr)):
        yield (
            f"The alert threshold rests on {alert.n} clean scores; {alert.target_fpr:.2%} takes {needed}: give more"
            " clean samples."
        )
    elif rule == "rank" and _n_past(manifest, findings) == 0:
        yield (
            f"The alert threshold is the greatest of {alert.n} clean scores: its rate of {alert.target_fpr:.2%} holds"
            f" on average over such samples, but its own may be as high as {_own_rate(manifest, findings):.2%}"
            f" ({_CONFIDENCE:.0%} confidence). More clean samples tell it better."
        )


def _promised(manifest: Manifest, findings: Findings) -> str:
    alert = manifest.thresholds["alert"]
    return (
        f"The alert threshold rests on {alert.n} clean scores and promises"
        f" {promise(alert, str(manifest.calibration.get('rule')))}. The rate of this one threshold is below"
        f" {_own_rate(manifest, findings):.2%} with {_CONFIDENCE:.0%} confidence."
    )


def _n_past(manifest: Manifest, findings: Findings) -> int:
    return int((findings.clean_scores > manifest.thresholds["alert"].value).sum())


def _own_rate(manifest: Manifest, findings: Findings) -> float:
    return own_rate(_n_past(manifest, findings), len(findings.clean_scores), confidence=_CONFIDENCE)


def _too_many(manifest: Manifest, findings: Findings) -> Iterator[str]:
    alert, held_out = manifest.thresholds["alert"], findings.held_out
    n_flagged = round(held_out.measured_fpr * held_out.n_clean)
    spread = (alert.target_fpr * (1 - alert.target_fpr) * (1 / held_out.n_clean + 1 / alert.n)) ** 0.5
    if held_out.measured_fpr > alert.target_fpr + 3 * spread:
        low, high = Proportion(count=n_flagged, n=held_out.n_clean).interval()
        yield (
            f"{n_flagged} of {held_out.n_clean} held-out clean inputs were flagged, more than chance allows at"
            f" {alert.target_fpr:g} (95 % interval {low:.2%} to {high:.2%}): the clean samples may not be alike."
        )


def _flagged(findings: Findings) -> str:
    held_out = findings.held_out
    n_flagged = round(held_out.measured_fpr * held_out.n_clean)
    low, high = Proportion(count=n_flagged, n=held_out.n_clean).interval()
    return (
        f"{n_flagged} of {held_out.n_clean} held-out clean inputs were flagged, {held_out.measured_fpr:.2%} (95 %"
        f" interval {low:.2%} to {high:.2%}), where {held_out.target_fpr:.2%} was asked for: no more than chance"
        " allows."
    )


def _label_warnings(manifest: Manifest, held_out: Evaluation) -> Iterator[str]:
    accuracy = held_out.original_clean_accuracy
    if accuracy is not None and accuracy < _HALF:
        yield (
            f"The model agrees with the labels of only {accuracy:.1%} of the held-out set: check the order of the"
            " classes and the preprocessing (--mean, --std, --scale, --layout)."
        )
    if manifest.calibration.get("labels") != "given":
        yield "No labels were given: the original's own predictions stood in, and accuracies are agreement with them."


def _accuracy_warnings(manifest: Manifest, held_out: Evaluation) -> Iterator[str]:
    """Yield where bounding costs more accuracy than is allowed and chance explains."""
    allowed = manifest.calibration.get("max_accuracy_drop", 0.0)
    before, after, guarded = _accuracies(held_out)
    if before is None or after is None or guarded is None:
        return
    if (drop := before - after) > allowed + _chance(drop, held_out.n_clean):
        yield (
            f"The bounded model loses {drop:.1%} of accuracy on the held-out set, more than the {allowed:.1%} of"
            " --max-accuracy-drop: use --method sigma, or more clean samples."
        )
    by_alarms = allowed + held_out.target_fpr
    if (drop := before - guarded) > by_alarms + _chance(drop, held_out.n_clean):
        yield (
            f"The guard answers {drop:.1%} fewer of the held-out set rightly than the original, more than the"
            f" {by_alarms:.1%} that false alarms and --max-accuracy-drop allow: the clean samples may not be alike."
        )


def _accuracies(held_out: Evaluation) -> tuple[float | None, float | None, float | None]:
    """Return the accuracies of the original, the bounded model and the guard."""
    return held_out.original_clean_accuracy, held_out.bounded_clean_accuracy, held_out.guarded_clean_accuracy


def _chance(drop: float, n: int) -> float:
    return _SPREADS * math.sqrt(abs(drop) * (1 - abs(drop)) / n)


def _kept(held_out: Evaluation) -> str:
    before, after, guarded = _accuracies(held_out)
    if before is None or after is None or guarded is None:
        return "It cannot be measured without labels."
    return (
        f"The guard answers {guarded:.2%} of the held-out set rightly, the original {before:.2%}; the bounded model"
        f" alone, which answers some corrected inputs, {after:.2%}. A false alarm rules the right class out, so that up"
        f" to {held_out.target_fpr:.2%} may be lost to them."
    )


def _learning(manifest: Manifest) -> Iterator[str]:
    settings = manifest.method["settings"]
    if settings.get("n_passed") == 0 and settings.get("step") != 0:
        yield "No bounds passed validation while they were learned; the last ones were kept."
    if (stopped := settings.get("stopped")) is not None:
        yield f"Learning the bounds stopped early: {stopped}. The last good ones were kept."


def _inactive(manifest: Manifest, seen: Seen | None) -> Iterator[str]:
    alert = manifest.thresholds["alert"]
    if alert.value < _NOISE:
        yield (
            f"The alert threshold is {alert.value:.2g}, no more than rounding: the bounds hardly touch clean inputs,"
            " may not touch triggers, and what is flagged may differ from machine to machine."
        )
    if seen is not None and not seen.capped.any():
        yield (
            "No held-out input touches any bound, so that nothing shows that bounds would touch triggers: corrections"
            " rest on hiding places alone."
        )


def _acting(seen: Seen | None) -> str:
    if seen is None:
        return "The threshold lies well above what rounding alone makes of scores."
    n_acting, rarest = int((seen.capped > 0).sum()), int(seen.capped.min())
    idle = "" if rarest else f"; at the other {len(seen.capped) - n_acting} no held-out input comes so far"
    return f"Held-out inputs touch bounds at {n_acting} of {len(seen.capped)} sites{idle}."


def _skipped(findings: Findings) -> Iterator[str]:
    if findings.skipped:
        yield f"{len(findings.skipped)} images could not be read and were skipped, such as {findings.skipped[0]}."
