"""The report of an inspection: one self-contained HTML page. It draws and words; it computes nothing new."""

import html
from collections.abc import Iterator

from calibrate.inspection.inspection import Inspection
from calibrate.inspection.pictures import class_picture, suspicion_picture, trigger_picture
from calibrate.inspection.verdict import NO_EVIDENCE, SUSPECTED, MesaComparison
from calibrate.page import page, records, table

__all__ = ["evidence_rows", "headline", "left_rows", "render_inspection"]

_NAMES = {"lint": "graph", "suspicion": "weights and activations", "ban": "neuron noise (BAN)",
          "mesa": "recovered triggers (MESA)"}  # fmt: skip
_BOXES = {SUSPECTED: "alert", NO_EVIDENCE: "plain"}
_MOST_CHANNELS = 10


def headline(inspection: Inspection) -> str:
    """Return the verdict in one line."""
    found = inspection.verdict
    towards = "" if found.suspected_target_class is None else f", towards class {found.suspected_target_class}"
    return f"{found.verdict}{towards}"


def evidence_rows(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """Yield what each look says, with its p-value or margin."""
    for evidence in inspection.verdict.evidence:
        figures = [
            f"{name} {value:.2g}"
            for name, value in (("p-value", evidence.p_value), ("margin", evidence.margin))
            if value is not None
        ]
        strength = "" if evidence.strength == "none" else f"{evidence.strength}: "
        said = f"{strength}{evidence.statement}"
        yield _NAMES[evidence.look], said + (f" ({', '.join(figures)})" if figures else "")


def left_rows(inspection: Inspection) -> Iterator[tuple[str, str]]:
    """Yield what was not looked at, and why."""
    for left in inspection.not_looked_at:
        yield _NAMES[left.look], left.reason


def render_inspection(inspection: Inspection) -> bytes:
    """Return the page, the same bytes for the same inspection."""
    name = html.escape(str(inspection.model["name"]))
    box = _BOXES.get(inspection.verdict.verdict, "warning")
    parts = [
        f"<div class='kind'>Trigger Guard, inspection of a model</div><h1>Inspection of {name}</h1>",
        f"<p class='{box} verdict'>{html.escape(headline(inspection))}</p>",
        *(f"<p class='warning'>{html.escape(warning)}</p>" for warning in inspection.warnings()),
        "<p>No look can show that a model is free of backdoors: what is not found may still be there.</p>",
        "<h2>Evidence</h2>",
        records(("look", "what it says"), evidence_rows(inspection)),
        *_left(inspection),
        *_lint(inspection),
        *_suspicion(inspection),
        *_ban(inspection),
        *_mesa(inspection.mesa),
        "<h2>How it was looked at</h2>",
        table(_settings_rows(inspection)),
    ]
    return page(f"Inspection of {inspection.model['name']}", parts)


def _left(inspection: Inspection) -> Iterator[str]:
    if inspection.not_looked_at:
        yield "<h2>Not looked at</h2>"
        yield records(("look", "why"), left_rows(inspection))


def _lint(inspection: Inspection) -> Iterator[str]:
    yield "<h2>Graph and weights</h2>"
    if not inspection.lint:
        yield "<p>Nothing odd was found in the graph.</p>"
        return
    rows = ((f.severity, f.kind.replace("_", " "), f.place, f.message) for f in inspection.lint)
    yield records(("severity", "kind", "where", "what it means"), rows)


def _suspicion(inspection: Inspection) -> Iterator[str]:
    found = inspection.suspicion
    if found is None:
        return
    if found.class_prior is not None:
        yield "<h2>Classes by the weights of the head</h2>"
        yield "<p>A class that many weights raise is one that a backdoor may have been trained towards.</p>"
        yield class_picture([found.class_prior.z], "robust z-score", inspection.verdict.suspected_target_class)
    yield "<h2>Channels by suspicion</h2>"
    yield (
        f"<p>Scores within each layer, from {found.n_samples} inputs. The dots are the {_MOST_CHANNELS} highest of the"
        " model. Every clean model has channels far out too: this ranks, and is no evidence by itself.</p>"
    )
    yield suspicion_picture(found.scores, _MOST_CHANNELS)


def _ban(inspection: Inspection) -> Iterator[str]:
    found = inspection.ban
    if found is None:
        return
    yield "<h2>Votes under neuron noise (BAN)</h2>"
    yield (
        f"<p>What {found.n_samples} clean inputs are taken for when noise ({html.escape(found.noise_on)})"
        " raises the loss and only what correct labels do not need is left. A backdoored model slides to one class, a"
        " clean one scatters. Dots are seeds, bars their means.</p>"
    )
    shares = found.histograms / found.n_samples
    yield class_picture(list(shares), "share of votes", inspection.verdict.suspected_target_class)


def _mesa(mesa: MesaComparison | None) -> Iterator[str]:
    if mesa is None:
        return
    yield "<h2>Recovered triggers (MESA)</h2>"
    yield "<p>Success is the share of other images that a trigger sends to the class, on images not fitted on.</p>"
    for role, found in (("suspected", mesa.suspected), ("control", mesa.control)):
        yield f"<h3>Class {found.target_class} ({role})</h3>"
        rows = (
            (
                str(g.distribution.kind),
                f"{g.distribution.beta:g}",
                f"{g.asr.share:.1%} of {g.asr.n}",
                "yes" if g.kept else "no",
            )
            for g in found.generators
        )
        yield records(("trigger", "level asked", "success", "kept"), rows)
        if found.kept:
            yield trigger_picture(found.kept)


def _settings_rows(inspection: Inspection) -> Iterator[tuple[str, str]]:
    yield "SHA-256 of the model", str(inspection.model["sha256"])
    yield "depth", inspection.depth
    yield "clean samples", str(inspection.n_samples)
    yield "unreadable images skipped", str(inspection.n_skipped)
    yield "labels", "given" if inspection.has_labels else "predicted by the model"
    yield "seed", str(inspection.seed)
    yield from inspection.versions.items()
