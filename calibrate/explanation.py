"""The page that explains one verdict: what was unusual about the input, by how much, and where."""

import html
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np

from calibrate.arrays import is_array_file
from calibrate.data import Preprocessing, load_row
from calibrate.explanation_pictures import heat_picture, site_picture
from calibrate.page import bar, facts, page, records
from guard.manifest import Manifest
from guard.runtime import Guard
from guard.types import Evidence, Inputs

__all__ = ["explain_row", "render_explanation", "verdict_of"]

_SPOKE = {
    "profile": "the profile: activations are larger, or otherwise more unusual, than clean inputs make them",
    "head": "the head: the answer falls once the last activation is capped, which is what pushes it there",
}
_CAUTION = (
    "<p>An unusual input need not carry a trigger: odd light, damage or another camera are unusual too. And a trigger"
    " that drives nothing unusual is not seen here. Keep this page from those who send inputs: it tells an attacker"
    " what to avoid.</p>"
)
_FULL = 10.0  # standard deviations that fill a bar


def explain_row(guard: Guard, path: str | Path, row: int) -> tuple[Evidence, bytes]:
    """Judge one input of a file; return the evidence and the page that draws it.

    Args:
        guard: Of a bundle with a one-pass detector.
        path: An image, .npz or .npy.
        row: Which input, from 0.

    Raises:
        InputError: The file does not fit the model, has no such row, or the bundle has no detector.
        ModelError: A model failed.
    """
    manifest = guard.manifest
    inputs = load_row(
        path,
        row,
        inputs=manifest.inputs,
        n_classes=manifest.n_classes,
        preprocessing=Preprocessing(**manifest.preprocessing),
    )
    evidence = guard(inputs).explain(0)
    name = f"{Path(path).name}, row {row}" if is_array_file(Path(path)) else Path(path).name
    return evidence, render_explanation(manifest, evidence, inputs, name=name)


def verdict_of(evidence: Evidence) -> str:
    """Return the verdict in one line."""
    if evidence.flagged:
        return f"Alarm: the model says class {evidence.predicted_class}, and the guard answers {_answer(evidence)}"
    if evidence.corrected:
        return f"No alarm, but unusual: answered more cautiously, with {_answer(evidence)}"
    return f"Nothing unusual: class {evidence.predicted_class}, as the model says"


def render_explanation(manifest: Manifest, evidence: Evidence, inputs: Inputs, *, name: str) -> bytes:
    """Return the page, the same bytes for the same evidence.

    Args:
        manifest: Of the bundle.
        evidence: What the guard said of the input.
        inputs: The input itself, model-ready, (1, ...).
        name: What to call it.
    """
    box = "alert" if evidence.flagged else "warning" if evidence.corrected else "good"
    parts = [
        "<div class='kind'>Trigger Guard, one input explained</div>",
        f"<h1>{html.escape(name)}</h1>",
        f"<p class='{box} verdict'>{html.escape(verdict_of(evidence))}.</p>",
        facts(_fact_rows(manifest, evidence)),
        f"<p>{html.escape(_why(manifest, evidence))}</p>",
        *_picture(manifest, evidence, inputs),
        *_sites(evidence),
        *_channels(evidence),
        "<h2>What this does not say</h2>",
        _CAUTION,
        f"<p class='quiet'>Guard of {html.escape(str(manifest.model['name']))}.</p>",
    ]
    return page(f"{name}, explained", parts)


def _answer(evidence: Evidence) -> str:
    return f"class {evidence.corrected_class}"


def _fact_rows(manifest: Manifest, evidence: Evidence) -> Iterator[tuple[str, str]]:
    alert, n = manifest.thresholds["alert"], manifest.thresholds["alert"].n
    yield f"{evidence.score:.3g}", f"score; the alarm is above {alert.value:.3g}"
    yield f"{evidence.p_value:.2g}", f"p-value: so rare are scores this high among {n} clean inputs"
    yield f"{evidence.profile:.3g}", "the profile's score"
    yield f"{evidence.head:.3g}", "the head's score"


def _why(manifest: Manifest, evidence: Evidence) -> str:
    spoke = f"The score is that of {_SPOKE[evidence.raised_by]}."
    over = manifest.thresholds["alert"].value
    other = evidence.head if evidence.raised_by == "profile" else evidence.profile
    both = " The other one alone would have raised the alarm as well." if other > over else ""
    usual = "" if evidence.corrected else " Here neither says much."
    return f"{spoke}{both}{usual} On both scales 0 is the usual clean input, and 1 is exceeded by a tenth of them."


def _picture(manifest: Manifest, evidence: Evidence, inputs: Inputs) -> Iterator[str]:
    if evidence.excess_map is None:
        return
    yield "<h2>Where in the image</h2>"
    images = next(iter(inputs.values())) if isinstance(inputs, dict) else inputs
    yield heat_picture(np.asarray(images)[0], manifest.preprocessing, evidence.excess_map, evidence.place)
    if evidence.place is None:
        yield "<p>No activation went past its bound anywhere.</p>"
        return
    down, across = (f"{100 * part:.0f} %" for part in evidence.place)
    yield (
        f"<p>Brighter is further past the bounds, over all activations. The strongest place is {down} down and {across}"
        " across; that is what a correction hides first. A trigger all over the image leaves no single place.</p>"
    )


def _sites(evidence: Evidence) -> Iterator[str]:
    yield "<h2>Activation by activation</h2>"
    yield (
        "<p>How far four numbers of each activation lie from those of clean inputs, in their standard deviations: the"
        " largest value anywhere (<i>peak</i>); how unusual channels are on average over the input (<i>level</i>), and"
        " the most unusual of them (<i>greatest level</i>); how unusual their largest values are (<i>reach</i>). Past"
        " the shaded region a number would raise the alarm by itself.</p>"
    )
    yield site_picture(evidence)
    kinds = ("mono", *("number drawn" for _ in evidence.numbers), "drawn")
    yield records(("activation", *evidence.numbers, "furthest past a bound"), _site_rows(evidence), kinds=kinds)


def _site_rows(evidence: Evidence) -> Iterator[Sequence[str]]:
    for s, site in enumerate(evidence.sites):
        distances = (
            f"<b class='failed'>{away:+.1f}</b>" if abs(away) > limit else f"{away:+.1f}"
            for away, limit in zip(evidence.away[:, s], evidence.limits[:, s], strict=True)
        )
        yield site, *distances, _excess(float(evidence.capped[s]))


def _channels(evidence: Evidence) -> Iterator[str]:
    yield "<h2>Channels that went furthest past their bounds</h2>"
    if not evidence.channels:
        yield "<p>None went past its bound.</p>"
        return
    rows = ((found.site, str(found.channel), _excess(found.excess)) for found in evidence.channels)
    yield records(("activation", "channel", "past its bound by"), rows, kinds=("mono", "number", "drawn"))


def _excess(value: float) -> str:
    return bar(0.0, min(value / _FULL, 1.0), f"{value:.2f} sd") if value > 0 else html.escape("not at all")
