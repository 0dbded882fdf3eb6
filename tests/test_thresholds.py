"""Rules that turn clean scores into thresholds."""

import shlex
from dataclasses import replace

import numpy as np
import pytest
from calibrate_runs import check_refused, fit_with
from digits import fit

from calibrate.thresholds import RULES, fit_normal_threshold
from guard.bundle import load_bundle
from guard.conformal import fit_certified_threshold, fit_threshold
from guard.errors import CalibrationError
from guard.runtime import Guard
from guard.types import Answers, ModelRun


def test_the_published_rule_is_mean_and_2576_thousandths_of_the_deviation_with_n_minus_1():
    scores = np.array([1.0, 2.0, 3.0, 6.0])
    threshold = fit_normal_threshold(scores, 0.005)
    deviation = np.sqrt((4 + 1 + 0 + 9) / 3)
    assert threshold.value == pytest.approx(3 + 2.576 * deviation, abs=1e-12)
    assert (threshold.target_fpr, threshold.n) == (0.005, 4)


def test_at_5_percent_the_published_rule_takes_1645_thousandths_of_the_deviation():
    threshold = fit_normal_threshold(np.array([1.0, 2.0, 3.0, 6.0]), 0.05)
    assert threshold.value == pytest.approx(3 + 1.645 * np.sqrt(14 / 3), abs=1e-12)


@pytest.mark.parametrize("scores", [[], [1.0], [1.0, np.inf], [1.0, np.nan, 2.0]])
def test_scores_without_a_deviation_are_refused(scores):
    with pytest.raises(CalibrationError, match="no mean and standard deviation"):
        fit_normal_threshold(np.array(scores), 0.005)


def test_the_rank_rule_is_the_conformal_one():
    scores = np.random.default_rng(0).normal(size=300)
    assert RULES["rank"].fit(scores, 0.02) == fit_threshold(scores, target_fpr=0.02)


def test_the_certified_rule_takes_as_many_scores_as_it_says():
    rule, scores = RULES["certified"], np.random.default_rng(0).normal(size=299)
    assert rule.required(0.01) == 299
    assert rule.fit(scores, 0.01) == fit_certified_threshold(scores, target_fpr=0.01)
    with pytest.raises(CalibrationError, match="1 are missing"):
        rule.fit(scores[1:], 0.01)


@pytest.mark.parametrize(("method", "score"), [("auto", "one_pass"), ("few-shot", "relative_divergence")])
def test_a_certified_fit_says_so_and_its_threshold_lies_no_lower_than_the_rank_rules(
    digits, tmp_path, capfd, method, score
):
    paths = {"model": digits.model, "data": digits.clean, "bundle": tmp_path / "bundle"}
    options = ("--method", method, "--target-fpr", "0.05")
    assert fit_with(paths, "--rule", "certified", *options) == 0
    bundle = load_bundle(paths["bundle"])
    alert = bundle.manifest.thresholds["alert"]
    assert (bundle.manifest.calibration["rule"], bundle.manifest.score) == ("certified", score)
    assert alert == fit_certified_threshold(bundle.clean_scores, target_fpr=0.05)
    assert alert.value >= fit_threshold(bundle.clean_scores, target_fpr=0.05).value
    assert "names, not promises" not in capfd.readouterr().err


def test_too_few_samples_for_a_certificate_are_refused_with_a_rate_that_works(digits, tmp_path, capfd):
    paths = {"model": digits.model, "data": digits.clean, "bundle": tmp_path / "bundle"}
    options = ("--rule", "certified", "--limit", "200")
    line = check_refused(fit_with(paths, *options), capfd, "takes 299 in the threshold set", "are missing")
    assert fit_with(paths, *options, *shlex.split(line.split("use these with ")[1])) == 0


def test_a_fit_by_the_published_rule_cuts_divergences_of_the_bounds_set(digits, tmp_path):
    rule = RULES["mmdf"]
    settings = {"rule": "mmdf", "score": rule.score, "target_fpr": rule.target_fpr, "correct_fpr": rule.correct_fpr}
    bundle = load_bundle(fit(digits.model, digits.clean, tmp_path / "bundle", **settings))
    alert, correct = (bundle.manifest.thresholds[name] for name in ("alert", "correct"))
    assert alert == correct == fit_normal_threshold(bundle.clean_scores, 0.005)
    assert alert.n == bundle.manifest.calibration["n_bounds_set"]


def _answers(rng, n_classes: int) -> Answers:
    outputs = rng.normal(scale=9, size=(200, n_classes)).astype(np.float32)
    return Answers(outputs=outputs, logits=outputs.astype(np.float64))


def test_what_the_published_rule_flags_gets_the_bounded_models_best_other_class_and_no_other_input_does(digits_bundle):
    bundle, rng = load_bundle(digits_bundle), np.random.default_rng(0)
    cut = fit_normal_threshold(bundle.clean_scores, 0.005)
    manifest = replace(bundle.manifest, score="divergence", thresholds={"alert": cut, "correct": cut})
    run = ModelRun(original=_answers(rng, manifest.n_classes), bounded=_answers(rng, manifest.n_classes))
    verdict = Guard.from_bundle(replace(bundle, manifest=manifest)).decide(run)
    predicted = run.original.logits.argmax(axis=1)
    others = np.where(np.arange(manifest.n_classes) == predicted[:, None], -np.inf, run.bounded.logits)
    assert 0 < verdict.flagged.sum() < 200
    assert (verdict.flagged == verdict.corrected).all()
    expected = np.where(verdict.flagged, others.argmax(axis=1), predicted)
    np.testing.assert_array_equal(verdict.corrected_class, expected)


def test_the_command_line_takes_the_published_rule_with_its_own_rates_and_says_what_they_are_worth(
    digits, tmp_path, capfd
):
    paths = {"model": digits.model, "data": digits.clean, "bundle": tmp_path / "bundle"}
    assert fit_with(paths, "--rule", "mmdf") == 0
    manifest = load_bundle(paths["bundle"]).manifest
    assert (manifest.score, manifest.thresholds["alert"].target_fpr) == ("divergence", 0.005)
    assert manifest.calibration["rule"] == "mmdf"
    assert "names, not promises" in capfd.readouterr().err


def test_a_rate_no_normal_quantile_belongs_to_is_refused(digits, tmp_path, capfd):
    paths = {"model": digits.model, "data": digits.clean, "bundle": tmp_path / "bundle"}
    check_refused(fit_with(paths, "--rule", "mmdf", "--target-fpr", "1.5"), capfd, "target_fpr is 1.5")
