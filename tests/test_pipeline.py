"""From a backdoored model and clean data to a bundle that stops the attack, the same bytes every time."""

import copy
import shutil
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from digits import TARGET, fit
from torch import nn

from calibrate.data import Samples, load_samples, split_samples
from calibrate.evaluation import Evaluation
from calibrate.graph import find_sites, read_classifier
from calibrate.pipeline import PARTS, evaluate_bundle
from calibrate.preprocessing import Preprocessing
from calibrate.statistics import site_moments
from guard.bundle import MANIFEST, ORIGINAL, REPORT, load_bundle
from guard.errors import BundleError, CalibrationError
from guard.runtime import Guard


def _silent(stage, done, total):
    pass


def _samples(guard: Guard, path: Path) -> Samples:
    return load_samples(
        path,
        inputs=guard.manifest.inputs,
        n_classes=10,
        preprocessing=Preprocessing(),
        limit=5000,
        seed=0,
        progress=_silent,
    )


def _evaluation(bundle: Path, digits) -> Evaluation:
    guard = Guard.load(bundle)
    return evaluate_bundle(guard, _samples(guard, digits.test), _samples(guard, digits.triggered), _silent)


def _flags(bundle: Path, digits, *, dtype=np.float32) -> np.ndarray:
    with np.load(digits.triggered) as triggered, np.load(digits.test) as clean:
        inputs = np.concatenate([triggered["inputs"], clean["inputs"]]).astype(dtype)
    return Guard.load(bundle)(inputs).flagged


def _contents(bundle: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in bundle.iterdir()}


def test_the_bundle_stops_an_attack_that_works_without_it(digits, digits_bundle):
    evaluation = _evaluation(digits_bundle, digits)
    assert evaluation.original_attack_success_rate > 0.95
    assert evaluation.guarded_attack_success_rate < 0.05
    assert evaluation.tpr > 0.9
    assert evaluation.auroc > 0.97


def test_the_bundle_costs_little_on_clean_samples(digits, digits_bundle):
    evaluation = _evaluation(digits_bundle, digits)
    assert evaluation.original_clean_accuracy > 0.95
    # A clean input that is flagged is never answered with its own class.
    lost = evaluation.original_clean_accuracy - evaluation.guarded_clean_accuracy
    assert lost < evaluation.measured_fpr + 0.02
    assert evaluation.measured_fpr < 0.1
    assert (evaluation.n_clean, evaluation.n_triggered, evaluation.target_fpr) == (397, 397, 0.05)


def test_corrected_answers_avoid_the_attackers_class(digits, digits_bundle):
    with np.load(digits.triggered) as arrays:
        verdict = Guard.load(digits_bundle)(arrays["inputs"])
    flagged = verdict.flagged & (verdict.predicted_class == TARGET)
    assert flagged.any()
    assert (verdict.corrected_class[flagged] != TARGET).all()


def test_the_original_is_shipped_byte_for_byte(digits, digits_bundle):
    assert (digits_bundle / ORIGINAL).read_bytes() == digits.model.read_bytes()


def test_the_manifest_says_what_was_fitted(digits_bundle):
    manifest = load_bundle(digits_bundle).manifest
    assert manifest.model["name"] == "digits"
    assert (manifest.output_kind, manifest.logits) == ("logits", "logits")
    assert [site["n_bounds"] for site in manifest.sites] == [16, 32, 32]
    sizes = [manifest.calibration[f"n_{part}_set"] for part in ("bounds", "threshold", "held_out")]
    assert sizes == [round(share * 700) for share in PARTS]
    thresholds = {name: (t.target_fpr, t.n) for name, t in manifest.thresholds.items()}
    assert thresholds == {"alert": (0.05, sizes[1]), "correct": (0.05, sizes[1])}
    assert manifest.calibration["labels"] == "given"


def test_the_bundle_knows_the_class_of_each_clean_score(digits, digits_bundle):
    bundle, guard = load_bundle(digits_bundle), Guard.load(digits_bundle)
    with np.load(digits.clean) as samples:
        verdict = guard(samples["inputs"])
    known = set(zip(verdict.score.tolist(), verdict.predicted_class.tolist(), strict=True))
    assert set(zip(bundle.clean_scores.tolist(), bundle.clean_classes.tolist(), strict=True)) <= known


def test_two_fits_give_the_same_bytes_in_every_file(digits, digits_bundle, tmp_path):
    again = fit(digits.model, digits.clean, tmp_path / "again")
    assert _contents(again) == _contents(digits_bundle)


def test_another_seed_gives_another_bundle(digits, digits_bundle, tmp_path):
    other = fit(digits.model, digits.clean, tmp_path / "other", seed=1)
    assert _contents(other)["thresholds.npz"] != _contents(digits_bundle)["thresholds.npz"]


def test_a_softmax_at_the_end_changes_no_flag(digits, digits_bundle, tmp_path):
    model = digits.export_to(tmp_path / "softmax.onnx", nn.Sequential(digits.network, nn.Softmax(1)))
    bundle = fit(model, digits.clean, tmp_path / "bundle")
    manifest = load_bundle(bundle).manifest
    assert manifest.output_kind == "probabilities"
    assert manifest.logits not in (None, manifest.output.name)
    np.testing.assert_array_equal(_flags(bundle, digits), _flags(digits_bundle, digits))


def test_probabilities_without_a_softmax_node_are_told_by_their_values(digits, digits_bundle, tmp_path):
    class Spelled(nn.Module):
        def forward(self, x):
            return x.exp() / x.exp().sum(1, keepdim=True)

    model = digits.export_to(tmp_path / "spelled.onnx", nn.Sequential(digits.network, Spelled()))
    bundle = fit(model, digits.clean, tmp_path / "bundle")
    manifest = load_bundle(bundle).manifest
    assert (manifest.output_kind, manifest.logits) == ("probabilities", None)
    assert (_flags(bundle, digits) == _flags(digits_bundle, digits)).mean() > 0.99


@pytest.mark.parametrize("batch", [1, 5])
def test_a_fixed_batch_changes_no_flag(digits, digits_bundle, tmp_path, batch):
    model = digits.export_to(tmp_path / "fixed.onnx", digits.network, batch=batch)
    bundle = fit(model, digits.clean, tmp_path / "bundle")
    assert load_bundle(bundle).manifest.inputs[0].shape == (None, 1, 8, 8)
    np.testing.assert_array_equal(_flags(bundle, digits), _flags(digits_bundle, digits))


def test_a_float16_twin_is_guarded_as_well(digits, digits_bundle, tmp_path):
    half = copy.deepcopy(digits.network).half()
    model = digits.export_to(tmp_path / "half.onnx", half, dtype=torch.float16)
    bundle = fit(model, digits.clean, tmp_path / "bundle")
    assert load_bundle(bundle).manifest.inputs[0].dtype == "float16"
    same = _flags(bundle, digits, dtype=np.float16) == _flags(digits_bundle, digits)
    assert same.mean() > 0.97


def test_weights_beside_the_model_end_up_inside_the_bundle(digits, digits_bundle, tmp_path):
    model = tmp_path / "model" / "digits.onnx"
    model.parent.mkdir()
    onnx.save(onnx.load(digits.model), model, save_as_external_data=True, location="w.bin", size_threshold=0)
    bundle = fit(model, digits.clean, tmp_path / "bundle")
    shutil.rmtree(model.parent)
    np.testing.assert_array_equal(_flags(bundle, digits), _flags(digits_bundle, digits))


def test_without_labels_the_report_says_whose_classes_stood_in(digits, tmp_path):
    with np.load(digits.clean) as arrays:
        np.savez(tmp_path / "unlabelled.npz", inputs=arrays["inputs"])
    bundle = fit(digits.model, tmp_path / "unlabelled.npz", tmp_path / "bundle")
    assert b"No labels were given" in (bundle / REPORT).read_bytes()
    calibration = load_bundle(bundle).manifest.calibration
    assert calibration["labels"] == "predicted by the original"
    assert calibration["held_out_original_accuracy"] is None


def test_no_clean_sample_is_in_two_parts(digits, digits_bundle):
    samples = _samples(Guard.load(digits_bundle), digits.clean)
    split = split_samples(samples, fractions=PARTS, seed=0)
    parts = [{row.tobytes() for row in part.raw} for part in (split.bounds, split.threshold, split.held_out)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 700


def test_the_bounds_come_from_the_bounds_set_alone(digits, tmp_path):
    model = read_classifier(digits.model).model
    guard = Guard.load(fit(digits.model, digits.clean, tmp_path / "bundle", method="sigma"))
    split = split_samples(_samples(guard, digits.clean), fractions=PARTS, seed=0)
    sites = find_sites(model)
    moments = site_moments(model, sites, split.bounds, pooling="maximum", progress=_silent)
    k = guard.manifest.method["settings"]["k"]
    last = moments[sites[-1].tensor]
    assert guard.manifest.sites[-1]["greatest_bound"] == pytest.approx(float((last.mean + k * last.std).max()))


@pytest.mark.parametrize("failure", [KeyboardInterrupt, CalibrationError])
@pytest.mark.parametrize("stage", ["activation statistics", "choosing the slack", "what clean", "scoring", "measuring"])
def test_whatever_stops_a_fit_an_earlier_bundle_stays(digits, digits_bundle, tmp_path, stage, failure):
    bundle = shutil.copytree(digits_bundle, tmp_path / "bundle")

    def stop(reached, done, total):
        if reached.startswith(stage):
            raise failure

    with pytest.raises(failure):
        fit(digits.model, digits.clean, bundle, progress=stop, seed=1)
    assert _contents(bundle) == _contents(digits_bundle)
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_new_fit_replaces_an_earlier_bundle(digits, digits_bundle, tmp_path):
    bundle = shutil.copytree(digits_bundle, tmp_path / "bundle")
    fit(digits.model, digits.clean, bundle, seed=1)
    assert load_bundle(bundle).manifest.seed == 1
    assert [p.name for p in tmp_path.iterdir()] == ["bundle"]


def test_a_limit_is_kept(digits, tmp_path):
    bundle = fit(digits.model, digits.clean, tmp_path / "bundle", limit=200)
    calibration = load_bundle(bundle).manifest.calibration
    assert sum(calibration[f"n_{part}_set"] for part in ("bounds", "threshold", "held_out")) == 200


def test_an_altered_bundle_is_not_evaluated(digits_bundle, tmp_path):
    bundle = shutil.copytree(digits_bundle, tmp_path / "bundle")
    manifest = (bundle / MANIFEST).read_bytes()
    (bundle / REPORT).write_bytes(b"another page")
    with pytest.raises(BundleError, match=REPORT):
        Guard.load(bundle)
    assert (bundle / MANIFEST).read_bytes() == manifest


def test_a_fit_says_what_graph_and_weights_came_to(digits_bundle):
    look = load_bundle(digits_bundle).manifest.calibration["look"]
    assert look["verdict"] in ("backdoor suspected", "grey: look closer", "no evidence found")
    assert any("graph" in statement for statement in look["statements"])
    assert f"A quick look at the model itself: {look['verdict']}" in (digits_bundle / "report.html").read_text()
