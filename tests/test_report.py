"""The report: one page that opens nothing outside of itself and that a person understands by itself."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from findings import SITE, N, detecting, findings_of, manifest_of
from hypothesis import given
from hypothesis import strategies as st

from calibrate.page import bar
from calibrate.report import render_report
from calibrate.report_tables import class_rows, site_rows, threshold_rows
from guard.bundle import REPORT


class _Page(HTMLParser):
    """Collects the tags of a page, what is open at its end, and everything that an attribute points at."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.targets: set[str] = set()
        self.open: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.add(tag)
        self.open += [] if tag in ("meta", "img") else [tag]
        self.targets |= {value or "" for name, value in attrs if name.split(":")[-1] in ("href", "src", "srcset")}

    def handle_startendtag(self, tag, attrs):
        self.tags.add(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def page_of(manifest, findings) -> str:
    return render_report(manifest, findings).decode()


def test_the_page_of_a_fit_opens_nothing_from_elsewhere(digits_bundle):
    text = (digits_bundle / REPORT).read_text()
    page = _Page(text)
    assert page.tags.isdisjoint({"script", "link", "iframe", "object", "embed", "base"})
    assert all(target.startswith(("#", "data:image/png;base64,")) for target in page.targets)
    assert "http" not in text
    assert "@import" not in text
    assert all(target.startswith("#") for target in re.findall(r"url\(([^)]*)\)", text))


def test_every_tag_is_closed_and_every_id_is_there_once(digits_bundle):
    text = (digits_bundle / REPORT).read_text()
    page = _Page(text)
    ids = re.findall(r'\bid=["\']([^"\']+)', text)
    assert page.open == []
    assert {target[1:] for target in page.targets if target.startswith("#")} <= set(ids)


def test_a_phone_shows_the_page_at_its_own_width(digits_bundle):
    assert "<meta name='viewport' content='width=device-width" in (digits_bundle / REPORT).read_text()


def test_the_page_of_a_fit_says_what_the_model_is_and_how_the_guard_did(digits_bundle):
    text = (digits_bundle / REPORT).read_text()
    for part in ("Guard of digits", "SHA-256", "float32 (?, 1, 8, 8)", "Can you trust this report?", "Class by class"):
        assert part in text
    assert "at most 5 % of clean inputs, on average over draws of the 350 samples" in text
    assert text.count("<svg") == text.count("</svg>") == 2  # one picture, for two widths


def test_a_page_claims_no_more_than_it_looked_for():
    assert "no backdoor was looked for" in page_of(manifest_of(), findings_of())
    assert "is no verdict on the model" in page_of(manifest_of(), findings_of())


def test_the_same_findings_give_the_same_page():
    assert page_of(manifest_of(), findings_of()) == page_of(manifest_of(), findings_of())


def test_names_are_escaped():
    sites = [{**SITE, "tensor": "<i>relu"}]
    changed = manifest_of(model={"name": "<script>alert(1)</script>", "sha256": "", "n_bytes": 1}, sites=sites)
    page = page_of(changed, findings_of(skipped=["<b>.png"]))
    assert "<script>" not in page
    assert "<b>.png" not in page
    assert "<i>relu" not in page
    assert "&lt;script&gt;" in page


@pytest.mark.parametrize("name", ["$x_$^", "层/输出", "a\nb", "/" + "x" * 200, "$\\frac$", ""])
def test_a_tensor_may_have_any_name(name):
    assert "<svg" in page_of(manifest_of(sites=[{**SITE, "tensor": name}]), findings_of())


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
    assert "<svg" in page_of(manifest_of(), findings_of(scores=scores))
    assert "the head speaks" not in page_of(manifest_of(), findings_of(scores=scores))


def test_scores_that_differ_by_rounding_alone_are_drawn():
    scores = np.nextafter(np.full(N, 5.0), np.tile([0.0, 9.0], N // 2))
    assert "<svg" in page_of(manifest_of(), findings_of(scores=scores, clean_scores=np.full(200, 5.0)))


@pytest.mark.parametrize("bounds", [(-2.0, -1.0), (0.0, 0.0), (1e-300, 1e300), (-1e300, 5.0)])
def test_bounds_may_be_any(bounds):
    site = {**SITE, "least_bound": bounds[0], "greatest_bound": bounds[1]}
    assert f"{bounds[0]:.3g} to {bounds[1]:.3g}" in page_of(manifest_of(sites=[site]), findings_of())


def test_a_site_tells_how_many_held_out_inputs_pass_its_bounds():
    first, second = site_rows(detecting("a", "b"), findings_of(capped=[0, 25]))
    assert first[-1].endswith("0.0%")
    assert second[-1].endswith("25.0%")
    (unmeasured,) = site_rows(manifest_of(), findings_of())
    assert unmeasured[-1] == "not measured"


def test_a_threshold_tells_its_promise_and_what_it_did():
    scores = np.append(np.zeros(N - 5), np.ones(5))
    alert, correct = threshold_rows(manifest_of(), findings_of(scores=scores))
    assert alert[0::3] == ("alert", "at most 1 % of clean inputs, on average over draws of the 200 samples")
    assert correct[-1].startswith("5.00% [")


def test_a_class_tells_its_accuracies_and_the_share_flagged_of_those_predicted_so():
    found = findings_of(n_flagged=2)
    guarded = np.where(found.answered.flagged, 1, found.answered.original)
    rows = list(class_rows(manifest_of(), replace(found, answered=replace(found.answered, guarded=guarded))))
    assert [row[:4] for row in rows] == [
        ("0", "34", "100.0%", "97.1%"), ("1", "33", "100.0%", "100.0%"), ("2", "33", "100.0%", "100.0%"),
    ]  # fmt: skip
    assert rows[0][4].endswith("2.9% (1 of 34)")
    assert rows[2][4].endswith("0.0% (0 of 33)")


def test_without_labels_classes_are_those_predicted():
    found = findings_of()
    unlabelled = replace(found, answered=replace(found.answered, labels=None))
    assert [row[:4] for row in class_rows(manifest_of(), unlabelled)] == [(str(k), "", "", "") for k in range(3)]


@given(low=st.floats(0, 1), high=st.floats(0, 1))
def test_a_bar_stays_within_itself(low, high):
    low, high = sorted((low, high))
    left, width = map(float, re.search(r"left:([\d.]+)%;width:([\d.]+)%", bar(low, high, "")).groups())
    assert left + width <= 100.2
    assert width > 0 or high == 0
