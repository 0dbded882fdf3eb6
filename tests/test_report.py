"""The report: one page that opens nothing outside of itself and says what a careful reader must know."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from bundles import manifest

from calibrate.evaluation import Answered, evaluate
from calibrate.report import Findings, render_report, warnings_of
from guard.bundle import REPORT

N = 100
CALIBRATION = {"labels": "given", "rule": "rank", "max_accuracy_drop": 0.03}


def _findings(*, n_flagged: int = 1, upper=None, scores=None, skipped=()) -> Findings:
    scores = np.linspace(0, 0.009, N) if scores is None else scores
    classes = np.arange(N) % 3
    answered = Answered(
        labels=classes,
        target_classes=None,
        original=classes,
        bounded=classes,
        guarded=classes,
        scores=scores,
        flagged=np.arange(N) < n_flagged,
    )
    return Findings(
        held_out=evaluate(answered, None, target_fpr=0.01),
        held_out_scores=scores,
        clean_scores=np.linspace(0, 0.01, 200),
        upper=upper or {"relu": np.ones((1, 3))},
        skipped=skipped,
    )


def _manifest(**changes):
    return replace(manifest(), calibration=CALIBRATION, **changes)


class _Resources(HTMLParser):
    """Collects the tags of a page and everything that an attribute points at."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.targets |= {value or "" for name, value in attrs if name.split(":")[-1] in ("href", "src", "srcset")}


def test_the_page_of_a_fit_opens_nothing_from_elsewhere(digits_bundle):
    text = (digits_bundle / REPORT).read_text()
    page = _Resources()
    page.feed(text)
    assert page.tags.isdisjoint({"script", "link", "iframe", "img", "object", "embed", "base", "meta-refresh"})
    assert all(target.startswith("#") for target in page.targets)
    assert "http" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_the_page_of_a_fit_holds_both_pictures_and_the_held_out_figures(digits_bundle):
    text = (digits_bundle / REPORT).read_text()
    assert text.count("<svg") == text.count("</svg>") == 2
    assert "false-positive rate measured" in text
    assert "Guard of digits" in text


def test_the_same_findings_give_the_same_page():
    assert render_report(_manifest(), _findings()) == render_report(_manifest(), _findings())


def test_names_are_escaped():
    changed = _manifest(model={"name": "<script>alert(1)</script>", "sha256": "", "n_bytes": 1})
    page = render_report(changed, _findings(skipped=["<b>.png"])).decode()
    assert "<script>" not in page
    assert "<b>" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("name", ["$x_$^", "层/输出", "a\nb", "/" + "x" * 200, "$\\frac$", ""])
def test_a_tensor_may_have_any_name(name):
    assert b"<svg" in render_report(_manifest(), _findings(upper={name: np.ones((1, 3))}))


@pytest.mark.parametrize(
    "scores",
    [
        pytest.param(np.zeros(N), id="all alike"),
        pytest.param(np.append(np.zeros(N - 1), np.inf), id="one infinite"),
        pytest.param(np.full(N, np.inf), id="all infinite"),
        pytest.param(np.append(np.zeros(N - 1), 1e300), id="one huge"),
        pytest.param(np.append(np.zeros(N - 1), 5e-324), id="one tiny"),
        pytest.param(-np.ones(N), id="negative"),
    ],
)
def test_the_held_out_scores_may_be_any(scores):
    assert b"<svg" in render_report(_manifest(), _findings(scores=scores))


def test_scores_that_differ_by_rounding_alone_are_drawn():
    scores = np.nextafter(np.full(N, 5.0), np.tile([0.0, 9.0], N // 2))
    findings = replace(_findings(scores=scores), clean_scores=np.full(200, 5.0))
    assert b"<svg" in render_report(_manifest(), findings)


def test_hundreds_of_sites_are_drawn():
    assert b"<svg" in render_report(_manifest(), _findings(upper={f"site {k}": np.ones(1) for k in range(200)}))


def test_nothing_is_warned_of_where_all_is_well():
    assert list(warnings_of(_manifest(), _findings())) == []


def test_more_false_alarms_than_chance_allows_are_warned_of():
    (warning,) = warnings_of(_manifest(), _findings(n_flagged=10))
    assert warning.startswith("10 of 100 held-out clean inputs were flagged")


@pytest.mark.parametrize(("n_lost", "is_told"), [(0, False), (5, False), (12, True)])
def test_bounds_that_cost_more_accuracy_than_is_allowed_are_warned_of(n_lost, is_told):
    found = _findings()
    found = replace(found, held_out=replace(found.held_out, bounded_clean_accuracy=1 - n_lost / N))
    told = [w for w in warnings_of(_manifest(), found) if "of accuracy on the held-out set, more than the 3.0%" in w]
    assert len(told) == is_told


def test_bounds_of_which_none_passed_are_warned_of():
    by_none = {"name": "unit-published", "settings": {"n_passed": 0, "step": 300}}
    assert "No bounds passed validation" in "".join(warnings_of(_manifest(method=by_none), _findings()))
    of_sigma = {"name": "mmac", "settings": {"n_passed": 0, "step": 0}}
    assert "No bounds passed validation" not in "".join(warnings_of(_manifest(method=of_sigma), _findings()))


def test_missing_labels_and_skipped_images_are_warned_of():
    unlabelled = replace(manifest(), calibration={**CALIBRATION, "labels": "predicted by the original"})
    labels, images = warnings_of(unlabelled, _findings(skipped=["a.png", "b.png"]))
    assert labels.startswith("No labels were given")
    assert images.startswith("2 images could not be read and were skipped, such as a.png")


def test_bounds_whose_learning_broke_off_are_warned_of():
    broken = _manifest(method={"name": "mmac", "settings": {"stopped": "the loss was nan at step 3"}})
    (warning,) = warnings_of(broken, _findings())
    assert warning == "Learning the bounds stopped early: the loss was nan at step 3. The last good ones were kept."


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-7])
def test_a_threshold_that_is_no_more_than_rounding_is_warned_of(value):
    thresholds = manifest().thresholds
    touched = _manifest(thresholds={**thresholds, "alert": replace(thresholds["alert"], value=value)})
    (warning,) = warnings_of(touched, _findings())
    assert "no more than rounding" in warning
