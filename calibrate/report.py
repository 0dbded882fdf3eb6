"""The report of a fit: one self-contained HTML page with two pictures. It draws and words; it computes nothing new."""

import html
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from calibrate.estimation import TprEstimation
from calibrate.evaluation import Evaluation
from calibrate.inspection.trigger_pictures import trigger_picture
from calibrate.page import ALERT, CORRECT, INK, STYLE, svg, table, tick_names
from guard.manifest import Manifest
from guard.types import FloatArray

__all__ = ["Findings", "estimate_rows", "render_report", "warnings_of"]

_ALIKE = 1e-9
_SCORES_EXPLAINED = (
    "<p>An input past the red line is flagged and its predicted class ruled out; past the orange line it gets the"
    " bounded model's answer.</p>"
)


_HALF = 0.5
_SPREADS = 2  # standard deviations of chance in a measured accuracy drop
_ESTIMATE_EXPLAINED = (
    "<p>The share of held-out inputs flagged among those that a recovered trigger takes to the class, with a 95 %"
    " interval. It holds for triggers of these kinds; the attacker's may be of another. In each row: triggers, where"
    " patches go, and held-out inputs that carry them.</p>"
)
_ESTIMATED = "estimated_tpr"
_NOISE = 1e-4  # divergences below it may come from rounding alone


@dataclass(frozen=True, slots=True, kw_only=True)
class Findings:
    """What was found while fitting.

    Args:
        held_out: The guard on the held-out set.
        held_out_scores: (n,) its scores.
        clean_scores: (n,) ascending scores of the threshold set.
        upper: The upper bounds by site tensor.
        lower: The lower ones, of the sites that have any.
        skipped: Names of images that could not be read.
        dropped_outputs: Outputs of the model that the guarded one does not give.
        unranked: Activations that are not bounded because their rank is unknown.
        estimation: The true-positive rate estimated on recovered triggers, where that was asked for.
    """

    held_out: Evaluation
    held_out_scores: FloatArray
    clean_scores: FloatArray
    upper: Mapping[str, FloatArray]
    lower: Mapping[str, FloatArray] = field(default_factory=dict)
    skipped: Sequence[str]
    dropped_outputs: Sequence[str] = ()
    unranked: Sequence[str] = ()
    estimation: TprEstimation | None = None


def render_report(manifest: Manifest, findings: Findings) -> bytes:
    """Return the page, the same bytes for the same findings."""
    name = html.escape(str(manifest.model["name"]))
    parts = [
        f"<!doctype html><html lang='en'><meta charset='utf-8'><title>Guard of {name}</title><style>{STYLE}</style>",
        f"<h1>Guard of {name}</h1>",
        *(f"<p class='warning'>{html.escape(w)}</p>" for w in warnings_of(manifest, findings)),
        "<h2>On clean inputs that nothing was fitted on</h2>",
        table(_held_out_rows(manifest, findings)),
        *_estimation_parts(findings.estimation),
        "<h2>Scores of clean inputs</h2>",
        _SCORES_EXPLAINED,
        _score_picture(manifest, findings),
        "<h2>Bounds</h2>",
        _bounds_explained(findings.lower),
        _bounds_picture(findings.upper, findings.lower),
        "<h2>How it was fitted</h2>",
        table(_settings_rows(manifest)),
        "<p>No finding on clean inputs says how many triggers will be caught: that depends on the attack.</p></html>",
    ]
    return "\n".join(parts).encode()


def warnings_of(manifest: Manifest, findings: Findings) -> Iterator[str]:
    """Yield what a careful reader should know before trusting the guard."""
    yield from _left_out(manifest, findings)
    alert, held_out = manifest.thresholds["alert"], findings.held_out
    n_flagged = round(held_out.measured_fpr * held_out.n_clean)
    spread = (alert.target_fpr * (1 - alert.target_fpr) * (1 / held_out.n_clean + 1 / alert.n)) ** 0.5
    if held_out.measured_fpr > alert.target_fpr + 3 * spread:
        yield (
            f"{n_flagged} of {held_out.n_clean} held-out clean inputs were flagged, more than chance allows at"
            f" {alert.target_fpr:g}: the clean samples may not be alike."
        )
    if manifest.calibration["rule"] == "mmdf":
        yield (
            "The thresholds are mean + z sd of scores on the bounds set, as MMDF was published: their false-positive"
            " rates are names, not promises. Use the rank rule to serve."
        )
    yield from _label_warnings(manifest, held_out)
    yield from _accuracy_warnings(manifest, held_out)
    if (stopped := manifest.method["settings"].get("stopped")) is not None:
        yield f"Learning the bounds stopped early: {stopped}. The last good ones were kept."
    if alert.value < _NOISE:
        yield (
            f"The alert threshold is {alert.value:.2g}, no more than rounding: the bounds hardly touch clean inputs,"
            " may not touch triggers, and what is flagged may differ from machine to machine."
        )
    yield from () if findings.estimation is None else findings.estimation.warnings()
    if findings.skipped:
        yield f"{len(findings.skipped)} images could not be read and were skipped, such as {findings.skipped[0]}."


def _label_warnings(manifest: Manifest, held_out: Evaluation) -> Iterator[str]:
    accuracy = held_out.original_clean_accuracy
    if accuracy is not None and accuracy < _HALF:
        yield (
            f"The model agrees with the labels of only {accuracy:.1%} of the held-out set: check the order of the"
            " classes and the preprocessing (--mean, --std, --scale, --layout)."
        )
    if manifest.calibration["labels"] != "given":
        yield "No labels were given: the original's own predictions stood in, and accuracies are agreement with them."


def _accuracy_warnings(manifest: Manifest, held_out: Evaluation) -> Iterator[str]:
    """Yield where bounding costs more accuracy than is allowed and chance explains, or was not kept from it."""
    allowed, settings = manifest.calibration["max_accuracy_drop"], manifest.method["settings"]
    before, after = held_out.original_clean_accuracy, held_out.bounded_clean_accuracy
    if before is not None and after is not None:
        drop = before - after
        if drop > allowed + _SPREADS * math.sqrt(abs(drop) * (1 - abs(drop)) / held_out.n_clean):
            yield (
                f"The bounded model loses {drop:.1%} of accuracy on the held-out set, more than the {allowed:.1%} of"
                " --max-accuracy-drop: use --method sigma, or more clean samples."
            )
    if settings.get("n_passed") == 0 and settings.get("step") != 0:
        yield "No bounds passed validation while they were learned; the last ones were kept."


def _left_out(manifest: Manifest, findings: Findings) -> Iterator[str]:
    for name in findings.dropped_outputs:
        yield f"The model's output {name!r} is dropped: a guarded model gives {manifest.output.name!r} alone."
    if findings.unranked:
        yield (
            f"{len(findings.unranked)} activations are not bounded, such as {findings.unranked[0]!r}, because their"
            " rank is unknown: export the model with a fixed input size."
        )


def _held_out_rows(manifest: Manifest, findings: Findings) -> Iterator[tuple[str, str]]:
    held_out = findings.held_out
    yield "inputs", str(held_out.n_clean)
    yield "false-positive rate asked for", f"{held_out.target_fpr:.2%} (from {manifest.thresholds['alert'].n} inputs)"
    yield "false-positive rate measured", f"{held_out.measured_fpr:.2%}"
    for model in ("original", "bounded", "guarded"):
        accuracy = getattr(held_out, f"{model}_clean_accuracy")
        yield f"accuracy, {model}", "unknown" if accuracy is None else f"{accuracy:.2%}"


def estimate_rows(estimation: TprEstimation) -> Iterator[tuple[str, str]]:
    """Yield per distribution of recovered triggers its name and the share flagged, with its interval and count."""
    for estimate in estimation.estimates:
        low, high = estimate.flagged.interval()
        role = ", validating" if estimate.is_validating else ""
        share = f"{estimate.flagged.share:.2%} [{low:.2%}, {high:.2%}] of {estimate.flagged.n}"
        yield f"{estimate.kind}, level {estimate.beta:g}{role}", share if estimate.flagged.n else "no trigger works"


def _estimation_parts(estimation: TprEstimation | None) -> Iterator[str]:
    if estimation is None or estimation.recovered is None or not estimation.estimates:
        return
    yield f"<h2>True-positive rate, estimated on recovered triggers towards class {estimation.target_class}</h2>"
    yield _ESTIMATE_EXPLAINED
    yield table(estimate_rows(estimation))
    yield trigger_picture(estimation.recovered.kept, estimation.examples)


def _settings_rows(manifest: Manifest) -> Iterator[tuple[str, str]]:
    yield "method", str(manifest.method["name"])
    for key, value in {**manifest.method["settings"], **manifest.calibration, **manifest.preprocessing}.items():
        if key == _ESTIMATED:  # has a table of its own
            continue
        yield key.replace("_", " "), f"{value:.4g}" if isinstance(value, float) else str(value)
    yield "score", manifest.score
    for name, threshold in manifest.thresholds.items():
        yield f"{name} threshold", f"{threshold.value:.6g}"
    yield "sites", str(len(manifest.sites))
    yield "seed", str(manifest.seed)


def _score_picture(manifest: Manifest, findings: Findings) -> str:
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    axes = figure.subplots()
    both = np.concatenate([findings.clean_scores, findings.held_out_scores])
    edges = _edges(both[np.isfinite(both)])
    axes.hist(findings.clean_scores, bins=edges, color=INK, alpha=0.85, label="what the thresholds were fitted on")
    axes.hist(findings.held_out_scores, bins=edges, color="#7fb2e5", alpha=0.85, label="held-out set")
    for name, color in (("correct", CORRECT), ("alert", ALERT)):
        axes.axvline(manifest.thresholds[name].value, color=color, linewidth=2, label=f"{name} threshold")
    axes.set(yscale="log", xlabel=manifest.score.replace("_", " "), ylabel="clean inputs")
    axes.legend(frameon=False)
    return svg(figure)


def _edges(scores: FloatArray) -> list[float]:
    """Return the edges of 60 bins around finite scores, however alike these are."""
    low, high = (float(scores.min()), float(scores.max())) if len(scores) else (0.0, 1.0)
    if high - low <= _ALIKE * max(abs(low), abs(high), 1):
        low, high = low - 0.5, high + 0.5
    return [float(edge) for edge in np.linspace(low, high, 61)]


def _bounds_explained(lower: Mapping[str, FloatArray]) -> str:
    below = " Those that go negative are bounded from below as well." if lower else ""
    look = "A site whose bounds are far above its neighbours' is a place to look at."
    return f"<p>Every activation is capped.{below} {look}</p>"


def _bounds_picture(upper: Mapping[str, FloatArray], lower: Mapping[str, FloatArray]) -> str:
    figure = Figure(figsize=(9, 0.8 + 0.26 * len(upper)), layout="constrained")
    axes = figure.subplots()
    rows = {name: row for row, name in enumerate(upper)}
    _draw_ranges(axes, rows, upper, INK, "median; the bar is the range")
    if lower:
        _draw_ranges(axes, rows, lower, CORRECT, "median of the lower bounds")
    axes.set_yticks(list(rows.values()), tick_names(upper), fontsize=8, parse_math=False)
    axes.set(xlabel="bound", ylim=(len(rows) - 0.5, -0.5))
    axes.legend(frameon=False)
    return svg(figure)


def _draw_ranges(axes: Axes, rows: Mapping[str, int], bounds: Mapping[str, FloatArray], color: str, label: str) -> None:
    places = [rows[name] for name in bounds]
    values = [np.sort(v.ravel()) for v in bounds.values()]
    axes.hlines(places, [v[0] for v in values], [v[-1] for v in values], color="#b8c7d9", linewidth=5)
    axes.scatter([float(np.median(v)) for v in values], places, color=color, zorder=3, label=label)
