"""The report of a fit: one self-contained HTML page. It draws and words what was found."""

import html
from collections.abc import Iterator

from calibrate.findings import Findings
from calibrate.page import facts, page, png, records, scrolled, table
from calibrate.report_checks import checks_of
from calibrate.report_pictures import score_picture
from calibrate.report_tables import (
    accuracy_rows,
    class_rows,
    estimate_rows,
    fact_rows,
    model_rows,
    settings_rows,
    site_rows,
    threshold_rows,
)
from guard.manifest import Manifest
from guard.scores import ONE_PASS

__all__ = ["render_report"]

_WHAT = (
    "<p>A backdoored model answers rightly until an input carries the attacker's trigger; then it names the attacker's"
    " class. The guard around this model scores every input by how unusual it drives the model's inner activations, on"
    " a scale learned from clean inputs. Past one threshold it answers more cautiously; past a higher one it raises an"
    " alarm and rules the predicted class out.</p>"
)
_NO_EVIDENCE = (
    "<p><b>This page is no verdict on the model.</b> It says how the guard behaves on clean inputs. Nothing here is"
    " evidence that the model holds a backdoor, and nothing shows that it holds none: {found}</p>"
)
_LOOK = (
    "<p><b>A quick look at the model itself: {verdict}.</b> It covers the graph and the weights: {statements}. Nothing"
    " found proves nothing; <code>guard-calibrate inspect</code> looks deeper. The rest of this page says how the guard"
    " behaves on clean inputs.</p>"
)
_TWO_SCORES = (
    "<p>The score is the larger of two. The <i>profile</i> is high where activations are larger, or more unusual on"
    " average, than clean inputs make them; the <i>head</i> is high where the answer falls once the last activation is"
    " capped. On both scales 0 is the usual clean input, and 1 is exceeded by a tenth of them.</p>"
)
_ONE_SCORE = (
    "<p>The score is the margin of the predicted class that the bounded model takes away: little on clean inputs.</p>"
)
_ESTIMATE_EXPLAINED = (
    "<p>The share of held-out inputs flagged among those that a recovered trigger takes to the class, with a 95 %"
    " interval. It holds for triggers of these kinds; the attacker's may be of another. In each row of the picture:"
    " triggers, where patches go, and held-out inputs that carry them.</p>"
)


def render_report(manifest: Manifest, findings: Findings) -> bytes:
    """Return the page, the same bytes for the same findings."""
    name = html.escape(str(manifest.model["name"]))
    parts = [
        f"<div class='kind'>Trigger Guard, report of a fit</div><h1>Guard of {name}</h1>",
        _summary(manifest, findings),
        facts(fact_rows(manifest, findings)),
        _WHAT,
        _about_the_model(manifest, findings),
        *_trust(manifest, findings),
        *_model(manifest),
        *_accuracy(findings),
        *_thresholds(manifest, findings),
        *_estimation(findings),
        *_sites(manifest, findings),
        *_classes(manifest, findings),
        "<h2>How it was fitted</h2>",
        table(settings_rows(manifest)),
    ]
    return page(f"Guard of {manifest.model['name']}", parts)


def _summary(manifest: Manifest, findings: Findings) -> str:
    checks = checks_of(manifest, findings)
    failed = [check.name for check in checks if not check.passed]
    if not failed:
        return f"<p class='good'>All {len(checks)} checks of this report passed: <a href='#trust'>see them</a>.</p>"
    named = " ".join(map(html.escape, failed))
    return (
        f"<p class='warning'>{len(failed)} of {len(checks)} checks of this report failed: {named}"
        " <a href='#trust'>See why</a>.</p>"
    )


def _about_the_model(manifest: Manifest, findings: Findings) -> str:
    look = manifest.calibration.get("look")
    if look is None:
        return _NO_EVIDENCE.format(found=_what_was_looked_for(findings))
    towards = look["suspected_target_class"]
    verdict = look["verdict"] + ("" if towards is None else f", towards class {towards}")
    return _LOOK.format(verdict=html.escape(verdict), statements=html.escape("; ".join(look["statements"])))


def _what_was_looked_for(findings: Findings) -> str:
    if findings.estimation is None:
        return "no backdoor was looked for. That is what <code>guard-calibrate inspect</code> does."
    if findings.estimation.target_class is None:
        return "a suspected class was looked for and none found, which is no more than no evidence."
    if findings.estimation.is_given:
        return "triggers were recovered for a class that was named by hand, as clean models have them too."
    return "triggers were recovered for the most suspicious class, as clean models have them too."


def _trust(manifest: Manifest, findings: Findings) -> Iterator[str]:
    yield "<h2 id='trust'>Can you trust this report?</h2>"
    rows = (
        f"<li><span class='mark {'passed' if check.passed else 'failed'}'>{'passed' if check.passed else 'failed'}"
        f"</span><div><b>{html.escape(check.name)}</b>"
        + "".join(f"<p>{html.escape(words)}</p>" for words in check.failures or (check.words,))
        + "</div></li>"
        for check in checks_of(manifest, findings)
    )
    yield f"<ul class='checks'>{''.join(rows)}</ul>"
    yield (
        "<p class='quiet'>No finding on clean inputs says how many triggers will be caught: that depends on the"
        " attack.</p>"
    )


def _model(manifest: Manifest) -> Iterator[str]:
    yield "<h2>The model</h2>"
    yield records((), model_rows(manifest), kinds=("name", "mono"))


def _accuracy(findings: Findings) -> Iterator[str]:
    yield "<h2>On clean inputs that nothing was fitted on</h2>"
    n = findings.held_out.n_clean
    yield f"<p>Accuracy on the {n} inputs of the held-out set, with 95 % intervals.</p>"
    heads = ("answers of the", "accuracy", f"right, of {n}")
    yield records(heads, accuracy_rows(findings), kinds=("name", "number", "number"))


def _thresholds(manifest: Manifest, findings: Findings) -> Iterator[str]:
    yield "<h2>Scores of clean inputs, and the two thresholds</h2>"
    yield _TWO_SCORES if manifest.score == ONE_PASS else _ONE_SCORE
    yield score_picture(manifest, findings)
    heads = ("threshold", "score", "an input past it is", "its false-positive rate, promised", "measured, held out")
    yield records(heads, threshold_rows(manifest, findings), kinds=("name", "number", "words", "words", "number"))


def _estimation(findings: Findings) -> Iterator[str]:
    estimation = findings.estimation
    if estimation is None or not estimation.estimates:
        return
    yield f"<h2>True-positive rate, estimated on recovered triggers towards class {estimation.target_class}</h2>"
    yield _ESTIMATE_EXPLAINED
    yield table(estimate_rows(estimation))
    if findings.triggers:
        yield scrolled(png(findings.triggers, "recovered triggers, and held-out inputs that carry them"))


def _sites(manifest: Manifest, findings: Findings) -> Iterator[str]:
    below = " Those that go negative are bounded from below as well." if _is_two_sided(manifest) else ""
    yield "<h2>Activations and their bounds</h2>"
    yield (
        f"<p>From the input to the answer.{below} A site whose bounds are far above its neighbours' is a place to look"
        " at. Clean inputs should touch bounds now and then: bounds that nothing touches may touch no trigger"
        " either.</p>"
    )
    heads = ("activation", "function", "bounds", "from least to greatest", "held-out inputs past one")
    yield records(heads, site_rows(manifest, findings), kinds=("mono", "", "number", "drawn", "drawn"))


def _is_two_sided(manifest: Manifest) -> bool:
    return any("n_lower_bounds" in site for site in manifest.sites)


def _classes(manifest: Manifest, findings: Findings) -> Iterator[str]:
    yield "<h2>Class by class</h2>"
    yield (
        "<p>On the held-out set. A class that is flagged far more often than others may be an attacker's, or one whose"
        " clean samples are few or odd.</p>"
    )
    heads = ("class", "inputs", "accuracy before", "after", "flagged, of those predicted so")
    kinds = ("number", "number", "number", "number", "drawn")
    yield records(heads, class_rows(manifest, findings), kinds=kinds)
