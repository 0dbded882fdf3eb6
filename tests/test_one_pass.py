"""What clean inputs teach the one-pass detector, and that every kind of model can be taught from."""

import numpy as np
import onnx
import pytest
from digits import fit
from onnx import TensorProto, helper
from pixels import fitted, images, pixel_model
from sklearn.covariance import OAS
from small_graphs import model_of, node, values_of
from texts import save_texts, text_classifier, texts

from calibrate.data import PARTS, load_samples, split_samples
from calibrate.draft import FitSettings
from calibrate.one_pass import shrunken_precision
from calibrate.preprocessing import Preprocessing
from guard import Guard
from guard.bundle import load_bundle
from guard.detector import Standard, head_run, profile_distance
from guard.scores import ONE_PASS, relative_divergence
from guard.types import Observed

RNG = np.random.default_rng(0)
WEIGHT = RNG.normal(size=(6, 3))


def guard_on(folder, model, inputs, **settings):
    """Fit by the default method and load the guard."""
    onnx.save(model, folder / "model.onnx")
    arrays = inputs if isinstance(inputs, dict) else {"inputs": inputs}
    np.savez(folder / "clean.npz", **arrays)
    settings = {"target_fpr": 0.1, "correct_fpr": 0.1, "max_accuracy_drop": 0.5, **settings}
    bundle = load_bundle(fit(model=folder / "model.onnx", data=folder / "clean.npz", bundle=folder / "b", **settings))
    return bundle, Guard.from_bundle(bundle, threads=1)


def rows(n=120, *shape, seed=1, dtype=np.float32):
    return np.random.default_rng(seed).normal(size=(n, *(shape or (6,)))).astype(dtype)


def table_net(*middle, y="y", dtype=TensorProto.FLOAT, x=("N", 6), **weights):
    """Return x (N, 6) -> relu -> whatever lies between -> out (N, 3)."""
    return model_of(
        node("Relu", ["x"], ["relu"]), *middle, node("MatMul", [y if middle else "relu", "w"], ["y"]),
        x=x, weights={"w": WEIGHT, **weights}, dtype=dtype,
    )  # fmt: skip


@pytest.mark.parametrize(("n", "s"), [(5, 3), (40, 3), (400, 6), (10, 30)])
@pytest.mark.parametrize("correlation", [0.0, 0.9])
def test_the_shrunken_precision_is_the_inverse_of_scikit_learns_oas(n, s, correlation):
    rng = np.random.default_rng(n + s)
    drawn = rng.normal(size=(n, s)) + correlation * rng.normal(size=(n, 1)) * 5
    expected = OAS(assume_centered=True).fit(drawn)
    np.testing.assert_allclose(shrunken_precision(drawn), np.linalg.inv(expected.covariance_), rtol=1e-6, atol=1e-9)


def test_rows_that_are_all_alike_still_have_a_precision():
    assert shrunken_precision(np.zeros((4, 3))).tolist() == np.eye(3).tolist()


def bounds_set(folder, **arrays):
    """Return the inputs that a fit on these arrays takes its bounds and its detector from."""
    np.savez(folder / "again.npz", **arrays)
    manifest = fitted().manifest
    samples = load_samples(folder / "again.npz", inputs=manifest.inputs, n_classes=manifest.n_classes,
                           preprocessing=Preprocessing(), limit=5000, seed=0, progress=lambda *_: None)  # fmt: skip
    found = split_samples(samples, fractions=PARTS, seed=0).bounds
    return found[0 : len(found)]


def test_the_detector_is_what_its_formula_makes_of_what_the_guard_sees_of_the_bounds_set(tmp_path):
    guard, found = Guard.from_bundle(fitted(), threads=1), fitted().detector
    inputs, labels = images(300)
    own = bounds_set(tmp_path, inputs=inputs, labels=labels)
    seen = guard.run_original(own)
    rows = seen.observed.profile.astype(np.float64)
    np.testing.assert_allclose(found.center, rows.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(found.scale, rows.std(axis=0), rtol=1e-4)
    np.testing.assert_allclose(found.precision, shrunken_precision((rows - found.center) / found.scale), rtol=1e-3)
    np.testing.assert_allclose(found.fill, own.mean(axis=(0, 2, 3)), rtol=1e-6)
    # Nothing is lost on any clean image, so that one nat counts as one.
    assert (relative_divergence(head_run(seen)) == 0).all()
    assert found.head == Standard(origin=0.0, spread=1.0)
    # Distances to the rows fitted on are too small, those of rows left out are usual: the standard lies between.
    assert (
        np.median(profile_distance(rows, found)) < found.profile.origin < 3 * np.median(profile_distance(rows, found))
    )


@pytest.mark.parametrize("ending", ["logits", "softmax", "probabilities"])
def test_the_usual_divergence_is_measured_as_the_guard_will_measure_it(tmp_path, ending):
    # A steep softmax whose tail underflows: float32 holds no smaller probability than e to the -103.
    ends = {
        "logits": [node("Identity", ["z"], ["y"])],
        "softmax": [node("Softmax", ["z"], ["y"], axis=1)],
        "probabilities": [node("Softmax", ["z"], ["p"], axis=1), node("Mul", ["p", "one"], ["y"])],
    }[ending]
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("MatMul", ["relu", "w"], ["z"]), *ends,
        x=("N", 6), weights={"w": 60 * WEIGHT, "one": 1.0},
    )  # fmt: skip
    inputs = rows()
    bundle, guard = guard_on(tmp_path, model, inputs)
    assert bundle.manifest.output_kind == ("logits" if ending == "logits" else "probabilities")
    lost = relative_divergence(head_run(guard.run_original(inputs)))
    middle = np.quantile(lost, [0.3, 0.7])
    assert middle[0] - 1e-9 <= bundle.detector.head.origin <= middle[1] + 1e-9
    assert bundle.detector.head.spread <= lost.max()


def test_a_site_that_is_the_same_for_all_inputs_is_left_out(tmp_path):
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Mul", ["x", "zero"], ["nothing"]), node("Add", ["nothing", "one"], ["h"]),
        node("Relu", ["h"], ["constant"]), node("Add", ["relu", "constant"], ["sum"]),
        node("MatMul", ["sum", "w"], ["y"]), x=("N", 6), weights={"w": WEIGHT, "zero": 0.0, "one": 1.0},
    )  # fmt: skip
    bundle, guard = guard_on(tmp_path, model, rows())
    assert bundle.manifest.detector["sites"] == ["relu"]
    assert {site["tensor"] for site in bundle.manifest.sites} == {"relu", "constant"}
    assert guard(rows(50, seed=2)).flagged.mean() < 0.4


def test_fewer_samples_than_sites_are_enough(tmp_path):
    chain = []
    for k in range(12):
        chain += [node("Add", [f"r{k}", "step"], [f"h{k}"]), node("Relu", [f"h{k}"], [f"r{k + 1}"])]
    chain[0].input[0] = "relu"
    model = table_net(*chain, y="r12", step=-0.05)
    bundle, guard = guard_on(tmp_path, model, rows(20), target_fpr=0.1, correct_fpr=0.2)
    assert bundle.manifest.calibration["n_bounds_set"] < len(bundle.manifest.detector["sites"]) == 13
    assert np.isfinite(bundle.clean_scores).all()
    assert guard(100 * rows(3)).flagged.all()


@pytest.mark.parametrize("axis", ["windows", "sequence"])
def test_sites_whose_first_axis_is_not_the_batch_are_left_out(tmp_path, axis):
    away, back = ([-1, 3], [-1, 6]) if axis == "windows" else ([2, -1, 3], [-1, 6])
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Reshape", ["relu", "away"], ["folded"]),
        node("MatMul", ["folded", "mix"], ["mixed"]), node("Relu", ["mixed"], ["in"]),
        node("Reshape", ["in", "back"], ["unfolded"]), node("MatMul", ["unfolded", "w"], ["y"]),
        x=("N", 6), weights={"w": WEIGHT, "mix": np.eye(3), "away": np.array(away), "back": np.array(back)},
    )  # fmt: skip
    bundle, guard = guard_on(tmp_path, model, rows())
    assert bundle.manifest.detector["sites"] == ["relu"]
    inputs = rows(9, seed=3)
    assert guard.run_original(inputs).outputs.tobytes() == values_of(model, "y", inputs).tobytes()


def test_a_site_whose_peak_never_varies_does_not_drown_the_others(tmp_path):
    # A gate of one channel that saturates somewhere in every image: its largest value is always 6.
    model = model_of(
        node("Mul", ["x", "steep"], ["h"]), node("Clip", ["h", "low", "high"], ["gate"]),
        node("Flatten", ["gate"], ["flat"]), node("MatMul", ["flat", "few"], ["g"]), node("Relu", ["g"], ["relu"]),
        node("MatMul", ["relu", "w"], ["y"]), x=("N", 1, 6, 6),
        weights={"few": RNG.normal(size=(36, 6)), "w": WEIGHT, "steep": 1e3, "low": 0.0, "high": 6.0},
    )  # fmt: skip
    bundle, _ = guard_on(tmp_path, model, rows(120, 1, 6, 6))
    gate, other = bundle.detector.scale[:2]  # of the peaks
    assert gate == pytest.approx(0.1 * other, rel=1e-3)


def test_a_head_that_loses_nothing_on_most_clean_inputs_has_a_spread_all_the_same(tmp_path):
    # Bounded inputs: hardly any maximum lies two robust scales above the usual one.
    inputs = np.random.default_rng(4).uniform(0.5, 1.0, size=(120, 6)).astype(np.float32)
    bundle, _ = guard_on(tmp_path, table_net(), inputs)
    assert bundle.detector.head.origin == 0
    assert bundle.detector.head.spread > 1e-4


def test_tables_and_texts_have_no_place_to_hide(tmp_path):
    bundle, guard = guard_on(tmp_path, table_net(), rows())
    assert (len(bundle.detector.fill), bundle.manifest.detector["capped_at"]) == (0, {})
    assert (guard(50 * rows(20)).corrected_class != guard(50 * rows(20)).predicted_class).any()
    onnx.save(text_classifier(), tmp_path / "texts.onnx")
    save_texts(tmp_path / "texts.npz", 200)
    of_texts = load_bundle(fit(tmp_path / "texts.onnx", tmp_path / "texts.npz", tmp_path / "texts"))
    assert len(of_texts.detector.fill) == 0
    assert Guard.from_bundle(of_texts, threads=1)(texts(20, triggered=True, seed=7)).flagged.all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "uint8"])
def test_images_of_any_type_are_guarded_and_integers_not_hidden(tmp_path, dtype):
    element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    model = model_of(
        node("Cast", ["x"], ["h"], to=TensorProto.FLOAT), node("Relu", ["h"], ["relu"]),
        node("Flatten", ["relu"], ["flat"]), node("MatMul", ["flat", "w"], ["y"]),
        x=("N", 4, 4, 3), weights={"w": np.random.default_rng(5).normal(size=(48, 3))},
    )  # fmt: skip
    model.graph.input[0].type.tensor_type.elem_type = element
    inputs = np.random.default_rng(6).integers(0, 200, size=(120, 4, 4, 3)).astype(dtype)
    nhwc = Preprocessing(scale=1.0, layout="nhwc")
    bundle, guard = guard_on(tmp_path, model, inputs, preprocessing=nhwc)
    assert len(bundle.detector.fill) == (0 if dtype == "uint8" else 3)
    loud = inputs[:10].copy()
    loud[:, 2, 2] = 255
    for batch in (loud, (255 - inputs[:10] % 2).astype(dtype)):
        verdict = guard(batch)
        assert (verdict.corrected_class != verdict.predicted_class)[verdict.flagged].all()
    assert verdict.flagged.all()


@pytest.mark.parametrize("layout", ["nchw", "nhwc"])
def test_the_mean_pixel_is_the_mean_over_images_and_places(tmp_path, layout):
    shape = ("N", 3, 4, 6) if layout == "nchw" else ("N", 4, 6, 3)
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Flatten", ["relu"], ["flat"]), node("MatMul", ["flat", "w"], ["y"]),
        x=shape, weights={"w": np.random.default_rng(5).normal(size=(72, 3))},
    )  # fmt: skip
    axis, levels = (1, np.array([1.0, 2.0, 3.0])) if layout == "nchw" else (3, np.array([1.0, 2.0, 3.0]))
    inputs = np.random.default_rng(6).normal(size=(100, *shape[1:])).astype(np.float32) * 0.1
    inputs += levels.reshape([3 if a == axis else 1 for a in range(4)]).astype(np.float32)
    bundle, _ = guard_on(tmp_path, model, inputs, preprocessing=Preprocessing(layout=layout))
    np.testing.assert_allclose(bundle.detector.fill, levels, atol=0.05)


def test_a_fixed_batch_changes_no_verdict(tmp_path):
    model = pixel_model()
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 4
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 4
    inputs, labels = images(300)
    bundle, guard = guard_on(tmp_path, model, {"inputs": inputs, "labels": labels}, target_fpr=0.05)
    assert bundle.manifest.detector["sites"] == ["relu"]
    batch = images(7, seed=9)[0]
    batch[:3, :, 2, 2] = 2
    one, other = guard(batch), Guard.from_bundle(fitted(), threads=1)(batch)
    assert one.flagged[:3].all()
    np.testing.assert_array_equal(one.corrected_class, other.corrected_class)
    np.testing.assert_allclose(one.score, other.score, rtol=1e-3)


def test_a_last_site_with_nothing_behind_it_but_the_output_is_bounded_in_the_head(tmp_path):
    model = model_of(
        node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["relu"]), node("Softmax", ["relu"], ["y"], axis=1),
        x=("N", 6), weights={"w": WEIGHT},
    )  # fmt: skip
    bundle, guard = guard_on(tmp_path, model, rows())
    assert bundle.manifest.logits == "relu"
    seen = guard.run_original(50 * rows(20, seed=8))
    assert isinstance(seen.observed, Observed)
    assert (seen.observed.head <= seen.logits).all()
    assert (seen.observed.head < seen.logits)[seen.logits > 9].all()
    assert (seen.logits > 9).any()


def test_bounds_of_any_other_method_go_with_the_one_pass_score(tmp_path):
    bundle, guard = guard_on(tmp_path, table_net(), rows(200), method="sigma", score="one_pass")
    assert (bundle.manifest.method["name"], bundle.manifest.score) == ("sigma", "one_pass")
    assert guard(100 * rows(5)).flagged.all()


@pytest.mark.parametrize(("rule", "score"), [("rank", ONE_PASS), ("certified", ONE_PASS), ("mmdf", "divergence")])
def test_the_default_method_is_scored_in_one_pass_but_for_the_published_rule(rule, score):
    assert FitSettings(preprocessing=Preprocessing(), rule=rule).chosen_score == score
