"""What cannot be fitted is refused by guard-calibrate in one line, and nothing is written."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from calibrate_runs import check_refused, fit_with, save_data
from onnx import TensorProto, helper
from small_graphs import model_of, node


def _refused_fit(good_fit, capfd, *options: str, says: str = "", **changes: Path) -> None:
    check_refused(fit_with({**good_fit, **changes}, *options), capfd, says)
    assert not good_fit["bundle"].exists()
    assert list(good_fit["bundle"].parent.iterdir()) == []


def _save_model(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, path)
    return path


def _inputs(n: int = 300) -> np.ndarray:
    return np.zeros((n, 1, 8, 8), dtype=np.float32)


def test_a_missing_model_is_refused(good_fit, tmp_path, capfd):
    _refused_fit(good_fit, capfd, model=tmp_path / "none.onnx", says="none.onnx is no file")


@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 99])
def test_what_is_no_onnx_is_refused(good_fit, tmp_path, capfd, content):
    (tmp_path / "model.onnx").write_bytes(content)
    _refused_fit(good_fit, capfd, model=tmp_path / "model.onnx", says="no valid ONNX model")


def test_a_truncated_model_is_refused(good_fit, tmp_path, capfd):
    (tmp_path / "model.onnx").write_bytes(good_fit["model"].read_bytes()[:-500])
    _refused_fit(good_fit, capfd, model=tmp_path / "model.onnx", says="truncated")


def test_a_model_that_onnxruntime_cannot_run_is_refused(good_fit, tmp_path, capfd):
    model = model_of(node("Magic", ["x"], ["y"], domain="org.nobody"), domains=["org.nobody"])
    _refused_fit(good_fit, capfd, model=_save_model(tmp_path / "m.onnx", model), says="Magic")


def test_a_model_without_an_activation_is_refused(good_fit, tmp_path, capfd):
    model = model_of(node("Flatten", ["x"], ["y"]), x=("N", 1, 8, 8), y=("N", 64))
    _refused_fit(good_fit, capfd, model=_save_model(tmp_path / "m.onnx", model), says="no activation to bound")


def test_a_method_that_needs_a_gradient_that_is_not_there_names_one_that_needs_none(good_fit, tmp_path, capfd):
    nodes = [node("Flatten", ["x"], ["f"]), node("MatMul", ["f", "w"], ["h"]), node("Relu", ["h"], ["a"])]
    nodes += [
        node("Reshape", ["a", "square"], ["s"]),
        node("Det", ["s"], ["d"]),
        node("Unsqueeze", ["d", "one"], ["u"]),
    ]
    nodes += [node("Add", ["a", "u"], ["b"]), node("MatMul", ["b", "v"], ["y"])]
    drawn = np.random.default_rng(1).normal
    weights = {"w": drawn(size=(64, 4)), "v": drawn(size=(4, 10)), "square": np.array([-1, 2, 2]), "one": np.array([1])}
    model = model_of(*nodes, x=("N", 1, 8, 8), y=("N", 10), weights=weights)
    np.savez(tmp_path / "clean.npz", inputs=np.random.default_rng(0).random((400, 1, 8, 8), dtype=np.float32))
    paths = {"model": _save_model(tmp_path / "m.onnx", model), "data": tmp_path / "clean.npz"}
    options = ("--method", "unit", "--target-fpr", "0.05")
    _refused_fit(good_fit, capfd, *options, **paths, says="needs no gradient: --method sigma")


def test_a_model_that_was_bounded_before_is_refused(good_fit, tmp_path, capfd):
    model = model_of(node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["y"]))
    model.metadata_props.add(key="trigger_guard.bounds", value="sigma")
    _refused_fit(good_fit, capfd, model=_save_model(tmp_path / "m.onnx", model), says="bounds already")


def test_a_model_with_two_outputs_is_refused(good_fit, tmp_path, capfd):
    model = model_of(node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 3]))
    _refused_fit(good_fit, capfd, model=_save_model(tmp_path / "m.onnx", model), says="be its classes (y, h)")


BAD_DATA = {
    "another shape": ({"inputs": np.zeros((300, 3, 8, 8), dtype=np.float32)}, "shape (300, 3, 8, 8)"),
    "another rank": ({"inputs": np.zeros((300, 64), dtype=np.float32)}, "shape (300, 64)"),
    "another type": ({"inputs": _inputs().astype(np.int64)}, "int64"),
    "text": ({"inputs": np.array(["a", "b"])}, "do not fit"),
    "no inputs": ({"images": _inputs()}, "no array `inputs`"),
    "nothing": ({"inputs": _inputs(0)}, "empty"),
    "a class too many": ({"inputs": _inputs(), "labels": np.full(300, 10)}, "in [0, 10)"),
    "too few labels": ({"inputs": _inputs(), "labels": np.zeros(299)}, "labels"),
    "NaN": ({"inputs": np.full((300, 1, 8, 8), np.nan, dtype=np.float32)}, "NaN"),
    "infinity": ({"inputs": np.full((300, 1, 8, 8), np.inf, dtype=np.float32)}, "infinity"),
    "pickles": ({"inputs": np.array([{}, {}])}, "cannot be read"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_arrays_that_do_not_fit_are_refused(good_fit, tmp_path, capfd, name):
    arrays, says = BAD_DATA[name]
    _refused_fit(good_fit, capfd, data=save_data(tmp_path / "data.npz", **arrays), says=says)


def test_missing_data_are_refused(good_fit, tmp_path, capfd):
    _refused_fit(good_fit, capfd, data=tmp_path / "none.npz", says="does not exist")


def test_an_empty_folder_is_refused(good_fit, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    _refused_fit(good_fit, capfd, data=tmp_path / "empty", says="holds no images")


def test_class_folders_of_another_number_are_refused(good_fit, tmp_path, capfd):
    from PIL import Image

    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "cat" / "1.png")
    _refused_fit(good_fit, capfd, data=tmp_path / "images", says="10 classes")


def test_too_few_samples_are_refused_with_how_many_are_missing(good_fit, capfd):
    line = check_refused(
        fit_with(good_fit, "--limit", "50"), capfd, "50 samples are too few", "are missing", "--target-fpr"
    )
    missing = int(line.split(" are missing")[0].split()[-1])
    assert fit_with(good_fit, "--limit", str(50 + missing)) == 0


def test_the_refusal_of_too_few_samples_names_the_limit_only_where_it_binds(good_fit, digits, tmp_path, capfd):
    assert "--limit" in check_refused(fit_with(good_fit, "--limit", "50"), capfd)
    with np.load(digits.clean) as arrays:
        data = save_data(tmp_path / "few.npz", inputs=arrays["inputs"][:50])
    assert "--limit" not in check_refused(fit_with({**good_fit, "data": data}), capfd)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "magic"], "--method"),
        (["--score", "magic"], "--score"),
        (["--target-fpr", "0"], "target_fpr is 0"),
        (["--target-fpr", "1"], "target_fpr is 1"),
        (["--target-fpr", "-1"], "target_fpr is -1"),
        (["--target-fpr", "nan"], "target_fpr is nan"),
        (["--target-fpr", "1e-9"], "target_fpr is 1e-09"),
        (["--target-fpr", "few"], "--target-fpr"),
        (["--correct-fpr", "0.001"], "correct_fpr is 0.001, below target_fpr 0.01"),
        (["--max-accuracy-drop", "2"], "max_accuracy_drop is 2"),
        (["--mean", "a,b,c"], "'a,b,c' is no list of numbers"),
        (["--mean", ""], "'' is no list of numbers"),
        (["--mean", "0.1,0.2"], "mean has 2 values"),
        (["--mean", "nan"], "must be finite"),
        (["--std", "1,1,1"], "std has 3 values"),
        (["--std", "0"], "must be finite and positive"),
        (["--scale", "0"], "must be finite and positive"),
        (["--layout", "chwn"], "--layout"),
        (["--limit", "0"], "limit 0"),
        (["--limit", "-5"], "limit -5"),
        (["--limit", "many"], "--limit"),
        (["--seed", "-1"], "'-1' is no whole number from 0 up"),
        (["--seed", "18446744073709551616"], "is no whole number from 0 up, and below 2**63"),
        (
            ["--method", "sigma", "--max-accuracy-drop", "0"],
            "max_accuracy_drop is 0, which no number of samples can show",
        ),
        (["--device", "tpu"], "--device"),
        (["--unknown"], "--unknown"),
    ],
)
def test_options_that_mean_nothing_are_refused(good_fit, capfd, options, says):
    _refused_fit(good_fit, capfd, *options, says=says)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_a_cuda_device_is_refused_at_once_where_there_is_none(good_fit, tmp_path, capfd):
    _refused_fit(good_fit, capfd, "--device", "cuda", model=tmp_path / "none.onnx", says="torch finds no CUDA device")
