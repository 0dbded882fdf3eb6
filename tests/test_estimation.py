"""The true-positive rate estimated on recovered triggers, against triggers that are known."""

import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from calibrate_runs import check_refused, fit_with, save_data
from digits import TARGET, fit
from sklearn.datasets import load_digits
from small_graphs import model_of, node

from calibrate.__main__ import main
from calibrate.data import Preprocessing
from calibrate.draft import FitSettings
from calibrate.estimation import TprEstimation, estimate_tpr, recover_for_estimate
from calibrate.inspection.mesa import MesaSettings, recover_triggers
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.trigger_places import Places
from calibrate.inspection.triggers import TriggerDistribution
from calibrate.pipeline import fit_bundle
from calibrate.report_tables import estimate_rows
from calibrate.sites import RowsInMemory
from guard.bundle import REPORT, load_bundle
from guard.errors import CalibrationError
from guard.runtime import Guard


@pytest.fixture(scope="module")
def guard(digits, tmp_path_factory):
    return Guard.load(fit(digits.model, digits.clean, tmp_path_factory.mktemp("estimation") / "bundle"))


def attackers_trigger(value=1.0, beta=0.8):
    """Return the trigger that digits' backdoor answers to, as a distribution; another value makes it fail."""
    bank = np.full((1, 1, 3, 3), value, dtype=np.float32)
    bank[..., 1, 1] = 0
    places = Places(corners=np.array([[5, 5]]), weights=np.ones(1))
    kind = TriggerKind(family="patch", size=3)
    return TriggerDistribution(
        kind=kind, target_class=TARGET, beta=beta, alpha=0.1, channel_axis=1, places=places, bank=bank
    )


def estimates_of(guard, inputs, *distributions):
    rows = RowsInMemory(inputs=inputs)
    return estimate_tpr(guard, distributions, rows, seed=0, progress=lambda *_: None)


def test_on_the_attackers_own_trigger_the_estimate_is_the_true_rate(digits, guard):
    with np.load(digits.test) as clean, np.load(digits.triggered) as triggered:
        (estimate,) = estimates_of(guard, clean["inputs"], attackers_trigger())
        others = guard(clean["inputs"]).predicted_class != TARGET
        verdict = guard(triggered["inputs"][others])
    working = verdict.predicted_class == TARGET
    assert (estimate.n_tried, estimate.flagged.n) == (others.sum(), working.sum())
    assert estimate.flagged.count == verdict.flagged[working].sum()


def test_inputs_on_which_the_trigger_fails_do_not_count(digits, guard):
    with np.load(digits.test) as clean:
        (estimate,) = estimates_of(guard, clean["inputs"], attackers_trigger(value=0.0))
    assert estimate.flagged.n < 0.2 * estimate.n_tried


def test_inputs_of_the_target_class_alone_leave_nothing_to_estimate(digits, guard):
    with np.load(digits.test) as clean:
        targets = clean["inputs"][guard(clean["inputs"]).predicted_class == TARGET]
    (estimate,) = estimates_of(guard, targets, attackers_trigger())
    assert estimate.n_tried == estimate.flagged.n == 0
    assert estimate.summary()["tpr"] is None


def test_the_middle_level_validates(digits, guard):
    with np.load(digits.test) as clean:
        found = estimates_of(guard, clean["inputs"][:40], *(attackers_trigger(beta=beta) for beta in (0.5, 0.8, 0.9)))
    assert [estimate.is_validating for estimate in found] == [False, True, False]


def test_it_says_why_there_is_no_estimate():
    nothing = TprEstimation(target_class=None, is_given=False, recovered=None, estimates=(), examples=np.zeros(0))
    assert "nor BAN suspect a class" in next(nothing.warnings())
    assert "No triggers of the kinds tried reach class 4" in next(replace(nothing, target_class=4).warnings())


@pytest.fixture(scope="module")
def paths(digits, tmp_path_factory):
    folder = tmp_path_factory.mktemp("estimated")
    pixels, labels = load_digits(return_X_y=True)
    inputs = (pixels.reshape(-1, 1, 8, 8) / 16).astype(np.float32)
    data = save_data(folder / "all.npz", inputs=inputs, labels=labels)
    return {"model": digits.model, "data": data, "bundle": folder / "bundle"}


def recover_quickly(problem, target_class):
    kinds = (TriggerKind(family="patch", size=3),)
    settings = MesaSettings(kinds=kinds, betas=(0.5, 0.8), width=64, iterations=100, learning_rate=2e-3)
    return recover_triggers(problem, target_class, settings=settings)


@pytest.fixture(scope="module")
def fitted(paths):
    settings = FitSettings(preprocessing=Preprocessing(), target_fpr=0.05, estimate_tpr=True, target_class=TARGET)
    places = (paths["model"], paths["data"], paths["bundle"])
    return fit_bundle(*places, settings, lambda *_: None, recover=recover_quickly)


def test_a_fit_estimates_reports_and_keeps_what_it_recovered(fitted, paths):
    _, findings = fitted
    estimated = load_bundle(paths["bundle"]).manifest.calibration["estimated_tpr"]
    assert estimated == json.loads(json.dumps(findings.estimation.summary()))
    assert (estimated["target_class"], estimated["target_class_from"]) == (TARGET, "caller")
    assert [found["beta"] for found in estimated["estimates"]] == [0.5, 0.8]
    report = (paths["bundle"] / REPORT).read_text()
    assert "estimated on recovered triggers towards class 0" in report
    assert "patch 3x3, level 0.8, validating" in report
    assert "src='data:image/png;base64," in report


def test_the_report_of_an_estimate_is_drawn_again_to_the_byte(fitted, paths, tmp_path):
    assert main(["report", str(paths["bundle"]), "--out", str(tmp_path / "r.html")]) == 0
    assert (tmp_path / "r.html").read_bytes() == (paths["bundle"] / REPORT).read_bytes()


def test_the_estimate_is_told_with_its_interval_and_count(fitted):
    rows = dict(estimate_rows(fitted[1].estimation))
    assert re.fullmatch(r"[\d.]+% \[[\d.]+%, [\d.]+%\] of \d+", rows["patch 3x3, level 0.8, validating"])


def test_a_shown_bundle_tells_its_estimates(fitted, paths, capfd):
    assert main(["show", str(paths["bundle"])]) == 0
    shown = capfd.readouterr().out
    assert re.search(r"tpr estimated on triggers +towards class 0\n +beta 0.5, family patch, .* size 3", shown)


@pytest.mark.parametrize(
    ("options", "part"),
    [
        (("--target-class", "0"), "--target-class is for --estimate-tpr"),
        (("--triggers", "t.npz"), "--triggers is for --estimate-tpr"),
        (("--estimate-tpr", "--target-class", "10"), "the classes are 0 to 9"),
        (("--estimate-tpr", "--target-class", "0", "--limit", "1200"), "takes 1249 in all"),
    ],
)
def test_what_cannot_be_estimated_is_refused(paths, capfd, options, part):
    check_refused(fit_with(paths, "--target-fpr", "0.05", *options), capfd, part)


def test_what_an_estimate_cannot_do_names_what_a_fit_can(tmp_path):
    model = model_of(node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"]), x=("N", 3, 4, 4), y=("N", 3, 4, 4))
    problem = InspectionProblem(
        model=model, logits="y", sites=(), n_classes=3, inputs=np.zeros((600, 3), np.float32),
        labels=np.zeros(600, np.int64), seed=0, progress=lambda *_: None,
    )  # fmt: skip
    with pytest.raises(CalibrationError, match=r"this one takes float32 .*; fit without --estimate-tpr"):
        recover_for_estimate(problem, 0)
    images = replace(problem, inputs=np.zeros((600, 3, 4, 4), np.float32))
    with pytest.raises(CalibrationError, match=r"last linear layer.*; name a class with --target-class"):
        recover_for_estimate(images, None)


def test_where_no_class_is_suspected_it_says_that_no_triggers_are_written(paths, tmp_path, monkeypatch, capfd):
    found_none = partial(fit_bundle, recover=lambda problem, target_class: None)
    monkeypatch.setattr("calibrate.__main__.fit_bundle", found_none)
    options = ("--target-fpr", "0.05", "--estimate-tpr", "--triggers", str(tmp_path / "t.npz"))
    assert fit_with({**paths, "bundle": tmp_path / "bundle"}, *options) == 0
    assert f"warning: no trigger was recovered; {tmp_path / 't.npz'} is not written" in capfd.readouterr().err


def test_triggers_inside_the_bundle_are_refused(paths, capfd):
    place = str(paths["bundle"] / "triggers.npz")
    check_refused(fit_with(paths, "--estimate-tpr", "--triggers", place), capfd, "inside the bundle")
