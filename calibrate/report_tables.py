"""The tables of a fit's report, row by row in words."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from calibrate.estimation import TprEstimation
from calibrate.findings import Findings
from calibrate.page import bar
from calibrate.promises import promise
from calibrate.proportions import Proportion
from guard.manifest import Manifest
from guard.types import BoolArray

__all__ = ["accuracy_rows", "class_rows", "estimate_rows", "fact_rows", "model_rows", "settings_rows", "share",
           "site_rows", "threshold_rows"]  # fmt: skip

_ESTIMATED, _LOOK = "estimated_tpr", "look"
_MANY = 60  # characters of a tensor's name


def share(rows: BoolArray) -> str:
    """Return a share with its 95 % interval."""
    found = Proportion(count=int(rows.sum()), n=len(rows))
    low, high = found.interval()
    return f"{found.share:.2%} [{low:.2%}, {high:.2%}]"


def fact_rows(manifest: Manifest, findings: Findings) -> Iterator[tuple[str, str]]:
    """Yield the figures that come first."""
    held_out = findings.held_out
    before, after = held_out.original_clean_accuracy, held_out.guarded_clean_accuracy
    if before is None or after is None:
        yield "unknown", "accuracy: no labels were given"
    else:
        yield f"{before:.1%} → {after:.1%}", "accuracy on held-out clean inputs, before and after"
    yield f"{held_out.measured_fpr:.2%}", f"of held-out clean inputs flagged; asked for {held_out.target_fpr:.2%}"
    yield str(len(manifest.sites)), "activations bounded"
    yield str(findings.held_out.n_clean), "held-out clean inputs, all figures rest on"


def model_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield what tells the model from any other."""
    yield "name", str(manifest.model["name"])
    yield "SHA-256", str(manifest.model["sha256"])
    yield "size", f"{manifest.model['n_bytes']:,} bytes"
    yield from (("input", str(spec)) for spec in manifest.inputs)
    yield "output", f"{manifest.output}, {manifest.output_kind}"
    yield "classes", str(manifest.n_classes)
    yield (
        "activations bounded",
        f"{len(manifest.sites)}, with {sum(s['n_bounds'] for s in manifest.sites)} upper bounds",
    )
    yield "guard", f"bounds by {manifest.method['name']}, score {manifest.score.replace('_', ' ')}"


def accuracy_rows(findings: Findings) -> Iterator[Sequence[str]]:
    """Yield for each model how many held-out inputs it gets right."""
    answered = findings.answered
    for name, words in (
        ("original", "original model, unguarded"),
        ("bounded", "bounded model alone"),
        ("guarded", "guarded: what callers get"),
    ):
        right = None if answered.labels is None else getattr(answered, name) == answered.labels
        yield words, "unknown" if right is None else share(right), "" if right is None else f"{right.sum()}"


def threshold_rows(manifest: Manifest, findings: Findings) -> Iterator[Sequence[str]]:
    """Yield for each threshold what it does, promises, and did on the held-out set."""
    rule, meanings = str(manifest.calibration.get("rule")), {
        "alert": "flagged; its predicted class is ruled out",
        "correct": "answered otherwise than by the original as it is",
    }  # fmt: skip
    for name, cut in manifest.thresholds.items():
        past = ~(findings.answered.scores <= cut.value)
        yield name, f"{cut.value:.4g}", meanings[name], promise(cut, rule), share(past)


def site_rows(manifest: Manifest, findings: Findings) -> Iterator[Sequence[str]]:
    """Yield for each site its bounds, and the share of held-out inputs that pass one."""
    detector, seen = manifest.detector, findings.seen
    counts = dict(zip(detector["sites"], seen.capped.tolist(), strict=True)) if detector and seen else {}
    n = findings.held_out.n_clean
    highest = max((site["greatest_bound"] for site in manifest.sites), default=1.0)
    for site in manifest.sites:
        least, greatest = site["least_bound"], site["greatest_bound"]
        scale = max(highest, 1e-300)
        touched = counts.get(site["tensor"])
        yield (
            _short(site["tensor"]),
            site["function"],
            str(site["n_bounds"]),
            bar(_within(least / scale), _within(greatest / scale), f"{least:.3g} to {greatest:.3g}{_below(site)}"),
            "not measured" if touched is None else bar(0.0, touched / n, f"{touched / n:.1%}"),
        )


def class_rows(manifest: Manifest, findings: Findings) -> Iterator[Sequence[str]]:
    """Yield per class how many held-out inputs there are, how many are right, and how many of it are flagged."""
    answered = findings.answered
    for k in range(manifest.n_classes):
        of_class = None if answered.labels is None else answered.labels == k
        predicted = answered.original == k
        if not predicted.any() and (of_class is None or not of_class.any()):
            continue
        n = "" if of_class is None else str(of_class.sum())
        before, after = (
            "" if of_class is None or not of_class.any() else f"{(found[of_class] == k).mean():.1%}"
            for found in (answered.original, answered.guarded)
        )
        flagged = answered.flagged[predicted]
        told = f"{flagged.mean():.1%} ({flagged.sum()} of {len(flagged)})" if len(flagged) else "none predicted"
        yield str(k), n, before, after, bar(0.0, float(flagged.mean()) if len(flagged) else 0.0, told)


def estimate_rows(estimation: TprEstimation) -> Iterator[tuple[str, str]]:
    """Yield per distribution of recovered triggers its name and the share flagged, with its interval and count."""
    for estimate in estimation.estimates:
        low, high = estimate.flagged.interval()
        role = ", validating" if estimate.is_validating else ""
        found = f"{estimate.flagged.share:.2%} [{low:.2%}, {high:.2%}] of {estimate.flagged.n}"
        yield f"{estimate.kind}, level {estimate.beta:g}{role}", found if estimate.flagged.n else "no trigger works"


def settings_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    """Yield how the guard was fitted."""
    yield "method", str(manifest.method["name"])
    for values in (manifest.method["settings"], manifest.calibration, manifest.preprocessing):
        for key, value in sorted(values.items()):
            if key not in (_ESTIMATED, _LOOK):  # these have places of their own
                yield key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)
    yield "seed", str(manifest.seed)
    yield from ((f"{name}, version", version) for name, version in sorted(manifest.versions.items()))


def _short(name: str) -> str:
    return name if len(name) <= _MANY else f"...{name[3 - _MANY :]}"


def _within(part: float) -> float:
    return float(np.clip(part, 0.0, 1.0)) if np.isfinite(part) else 1.0


def _below(site: Mapping[str, Any]) -> str:
    if "least_lower_bound" not in site:
        return ""
    return f", from below {site['least_lower_bound']:.3g} to {site['greatest_lower_bound']:.3g}"
