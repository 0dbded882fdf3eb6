"""What a fit found: kept in the bundle, drawn again from it alone, and refused where it is not what was kept."""

import io
import json
import shutil
from dataclasses import fields, replace

import numpy as np
import pytest
from bundles import clean_scores
from calibrate_runs import check_refused
from findings import N, detecting, findings_of, manifest_of

from calibrate.__main__ import main
from calibrate.estimation import TprEstimate, TprEstimation
from calibrate.findings_file import pack_findings, unpack_findings
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.pipeline import answer
from calibrate.proportions import Proportion
from calibrate.report import render_report
from guard.bundle import FINDINGS, REPORT, Bundle, load_bundle, save_bundle
from guard.errors import BundleError
from guard.runtime import Guard

PNG = b"\x89PNG\r\n\x1a\nand more"


def bundle_with(manifest, content: bytes | None) -> Bundle:
    return Bundle(manifest=manifest, original=b"", bounded=b"", clean_scores=clean_scores(), findings=content)


def estimated(*counts: tuple[int, int]) -> TprEstimation:
    kind = TriggerKind(family="patch", size=3)
    found = tuple(TprEstimate(kind=kind, beta=0.8, n_tried=9, flagged=Proportion(count=k, n=n)) for k, n in counts)
    return TprEstimation(target_class=2, is_given=True, recovered=None, estimates=found, examples=np.zeros(0))


def altered(**changes) -> bytes:
    """Return packed findings with a detector of two sites, some of whose arrays are others, or none."""
    with np.load(io.BytesIO(pack_findings(findings_of(capped=[1, 2])))) as file:
        arrays = {**{name: file[name] for name in file.files}, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: array for name, array in arrays.items() if array is not None})
    return buffer.getvalue()


def about(**changes):
    said = {"skipped": [], "dropped_outputs": [], "unranked": [], "estimation": None}
    return np.array(json.dumps({**said, **changes}))


def test_a_report_is_drawn_again_to_the_byte(digits_bundle, tmp_path, capsys):
    assert main(["report", str(digits_bundle), "--out", str(tmp_path / "again.html")]) == 0
    assert (tmp_path / "again.html").read_bytes() == (digits_bundle / REPORT).read_bytes()
    assert capsys.readouterr().out == f"report written to {tmp_path / 'again.html'}\n"


@pytest.mark.parametrize(
    ("manifest", "found"),
    [
        (manifest_of(), findings_of()),
        (detecting("a", "b"), findings_of(capped=[1, 2])),
        (manifest_of(), findings_of(skipped=["ü.png"], dropped_outputs=["a"], unranked=["b", "c"])),
        (manifest_of(), findings_of(estimation=estimated((3, 4), (0, 0)), triggers=PNG)),
    ],
)
def test_findings_that_were_packed_give_the_same_page(manifest, found):
    again = unpack_findings(bundle_with(manifest, pack_findings(found)))
    assert render_report(manifest, again) == render_report(manifest, found)
    assert pack_findings(again) == pack_findings(found)


def test_missing_labels_stay_missing():
    found = findings_of()
    again = unpack_findings(
        bundle_with(manifest_of(), pack_findings(replace(found, answered=replace(found.answered, labels=None))))
    )
    assert again.answered.labels is None
    assert again.held_out.original_clean_accuracy is None


def test_a_fit_keeps_what_its_own_guard_says_of_the_held_out_set(digits_bundle):
    bundle = load_bundle(digits_bundle)
    found = unpack_findings(bundle)
    assert found.held_out.measured_fpr == bundle.manifest.calibration["held_out_fpr"]
    assert len(found.answered.scores) == bundle.manifest.calibration["n_held_out_set"] == len(found.seen.profile)
    joined = np.maximum(found.seen.profile, found.seen.head)
    np.testing.assert_allclose(joined, found.answered.scores, rtol=1e-4, atol=1e-5)
    assert (found.seen.capped > 0).all()


def test_a_bundle_without_findings_draws_no_report(digits_bundle, tmp_path, capfd):
    bundle, contents = load_bundle(digits_bundle), {}
    for name in bundle.manifest.files.keys() - {FINDINGS}:
        contents[name] = (digits_bundle / name).read_bytes()
    save_bundle(tmp_path / "bundle", bundle.manifest, contents)
    Guard.load(tmp_path / "bundle")
    status = main(["report", str(tmp_path / "bundle"), "--out", str(tmp_path / "r.html")])
    check_refused(status, capfd, "holds no findings.npz", "fit it again")


@pytest.mark.parametrize(
    "content",
    [
        pytest.param(b"", id="nothing"),
        pytest.param(b"no archive", id="no archive"),
        pytest.param(altered(scores=None), id="no scores"),
        pytest.param(altered(more=np.zeros(1)), id="one array more"),
        pytest.param(altered(about=None), id="nothing about"),
        pytest.param(altered(about=np.array("[")), id="about is no JSON"),
        pytest.param(altered(about=about(skipped=[1])), id="about is of other types"),
        pytest.param(altered(about=about(more=1)), id="about has a key more"),
        pytest.param(altered(about=np.array([{}], dtype=object)), id="pickled"),
        pytest.param(altered(flagged=np.zeros(N)), id="flags are numbers"),
        pytest.param(altered(head=np.zeros(N - 1)), id="one row less"),
        pytest.param(altered(labels=np.full(N, 3)), id="a class too high"),
        pytest.param(altered(original=np.full(N, -1)), id="a class below 0"),
        pytest.param(altered(capped=np.array([1, N + 1])), id="more capped than there are"),
        pytest.param(altered(capped=np.array([1])), id="another number of sites"),
        pytest.param(altered(scores=np.full(N, np.nan)), id="scores of NaN"),
        pytest.param(altered(scores=np.zeros((2, 2))), id="scores in two axes"),
        pytest.param(altered(triggers=np.frombuffer(b"<svg onload=''>", dtype=np.uint8)), id="no PNG"),
        pytest.param(pack_findings(findings_of(estimation=estimated((5, 4)))), id="more flagged than work"),
    ],
)
def test_findings_that_cannot_be_are_refused(content):
    with pytest.raises(BundleError, match=r"findings\.npz is not what a report is drawn from .*; fit the bundle again"):
        unpack_findings(bundle_with(detecting("a", "b"), content))


def test_altered_findings_are_not_loaded(digits_bundle, tmp_path, capfd):
    bundle = shutil.copytree(digits_bundle, tmp_path / "bundle")
    (bundle / FINDINGS).write_bytes(pack_findings(findings_of()))
    check_refused(main(["report", str(bundle), "--out", str(tmp_path / "r.html")]), capfd, FINDINGS)


@pytest.mark.parametrize("place", [".", "BUNDLE/r.html"])
def test_a_page_that_cannot_be_written_is_refused(digits_bundle, capfd, place):
    target = place.replace("BUNDLE", str(digits_bundle))
    check_refused(main(["report", str(digits_bundle), "--out", target]), capfd, "--out")


def test_the_guard_measured_again_says_what_was_found(digits, digits_bundle):
    from calibrate.data import PARTS, Preprocessing, load_samples, split_samples

    guard = Guard.load(digits_bundle)
    samples = load_samples(digits.clean, inputs=guard.manifest.inputs, n_classes=10, preprocessing=Preprocessing(),
                           limit=5000, seed=0, progress=lambda *_: None)  # fmt: skip
    held_out = split_samples(samples, fractions=PARTS, seed=0).held_out
    again, found = answer(guard, held_out, lambda *_: None, stage=""), unpack_findings(load_bundle(digits_bundle))
    for field in fields(again):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(found.answered, field.name))
