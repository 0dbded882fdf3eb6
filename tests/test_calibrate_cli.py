"""guard-calibrate: what it prints, and one line for everything that cannot be done."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import model_of, node

from calibrate.__main__ import main
from calibrate.evaluation import Evaluation
from calibrate.pipeline import PARTS
from guard.bundle import load_bundle


@pytest.fixture
def good(digits, tmp_path) -> dict[str, Path]:
    """Return the paths of a fit that would work, its bundle in an empty folder."""
    (tmp_path / "out").mkdir()
    return {"model": digits.model, "data": digits.clean, "bundle": tmp_path / "out" / "bundle"}


def _fit(paths: dict[str, Path], *options: str) -> int:
    return main(["fit", str(paths["model"]), "--data", str(paths["data"]), "--bundle", str(paths["bundle"]), *options])


def _refused(status: int, capfd, *parts: str) -> str:
    """Check that one line of error and nothing else was printed; return it."""
    out, err = capfd.readouterr()
    progress, _, line = err.rpartition("guard-calibrate: error: ")
    assert (status, out) == (2, "")
    assert line.endswith("\n")
    assert line.count("\n") == 1
    assert all(" of " in step for step in progress.splitlines())
    assert all(part in line for part in parts), line
    return line


def _refused_fit(good, capfd, *options: str, says: str = "", **changes: Path) -> None:
    _refused(_fit({**good, **changes}, *options), capfd, says)
    assert not good["bundle"].exists()
    assert list(good["bundle"].parent.iterdir()) == []


def _save_data(path: Path, **arrays) -> Path:
    np.savez(path, **arrays)
    return path


def _save_model(path: Path, model: onnx.ModelProto) -> Path:
    onnx.save(model, path)
    return path


def _inputs(n: int = 300) -> np.ndarray:
    return np.zeros((n, 1, 8, 8), dtype=np.float32)


def test_a_fit_says_what_it_measured_and_where_the_bundle_is(good, capsys):
    assert _fit(good) == 0
    out, _ = capsys.readouterr()
    assert "measured_fpr" in out
    assert out.endswith(f"bundle written to {good['bundle']}; look at {good['bundle'] / 'report.html'}\n")
    assert load_bundle(good["bundle"]).manifest.model["name"] == "digits"


def test_progress_goes_to_standard_error_line_by_line(good, capsys):
    _fit(good)
    out, err = capsys.readouterr()
    n = round(PARTS[1] * 700)
    assert f"scoring the threshold set: {n} of {n}" in err
    assert "scoring the threshold set" not in out
    assert "\r" not in err


def test_a_fit_without_labels_warns_on_standard_error(good, digits, tmp_path, capsys):
    with np.load(digits.clean) as arrays:
        data = _save_data(tmp_path / "unlabelled.npz", inputs=arrays["inputs"])
    assert _fit({**good, "data": data}) == 0
    out, err = capsys.readouterr()
    assert "warning: No labels were given" in err
    assert "warning" not in out


def test_evaluate_prints_and_writes_the_same_figures(digits, digits_bundle, tmp_path, capsys):
    target = tmp_path / "deep" / "figures.json"
    arguments = ["--clean", str(digits.test), "--triggered", str(digits.triggered), "--json", str(target)]
    assert main(["evaluate", str(digits_bundle), *arguments]) == 0
    figures = json.loads(target.read_text())
    printed = dict(line.split() for line in capsys.readouterr().out.splitlines())
    assert list(figures) == list(printed) == [f.name for f in fields(Evaluation)]
    assert printed["guarded_attack_success_rate"] == f"{figures['guarded_attack_success_rate']:.4f}"
    assert [p.name for p in target.parent.iterdir()] == ["figures.json"]


def test_evaluate_on_clean_data_alone_says_what_is_not_applicable(digits, digits_bundle, tmp_path, capsys):
    target = tmp_path / "figures.json"
    assert main(["evaluate", str(digits_bundle), "--clean", str(digits.test), "--json", str(target)]) == 0
    assert json.loads(target.read_text())["auroc"] is None
    assert "not applicable" in capsys.readouterr().out


def test_evaluate_takes_the_target_class_from_the_command_line(digits, digits_bundle, tmp_path, capsys):
    with np.load(digits.triggered) as arrays:
        data = _save_data(tmp_path / "t.npz", inputs=arrays["inputs"], labels=arrays["labels"])
    arguments = ["evaluate", str(digits_bundle), "--clean", str(digits.test), "--triggered", str(data)]
    assert main(arguments) == 0
    assert "give --target-class" in capsys.readouterr().out
    assert main([*arguments, "--target-class", "0"]) == 0
    assert "give --target-class" not in capsys.readouterr().out


def test_show_prints_what_was_verified(digits_bundle, capsys):
    assert main(["show", str(digits_bundle)]) == 0
    out, err = capsys.readouterr()
    manifest = load_bundle(digits_bundle).manifest
    assert out.startswith(f"{digits_bundle}: every file verified, both models load\n")
    assert manifest.model["sha256"][:16] in out
    assert f"{manifest.thresholds['alert'].value:.6g}, for a false-positive rate of 0.05" in out
    assert all(name in out and digest.sha256[:16] in out for name, digest in manifest.files.items())
    assert err == ""


def test_a_missing_model_is_refused(good, tmp_path, capfd):
    _refused_fit(good, capfd, model=tmp_path / "none.onnx", says="none.onnx is no file")


@pytest.mark.parametrize("content", [b"", b"text", b"\x00" * 99])
def test_what_is_no_onnx_is_refused(good, tmp_path, capfd, content):
    (tmp_path / "model.onnx").write_bytes(content)
    _refused_fit(good, capfd, model=tmp_path / "model.onnx", says="no valid ONNX model")


def test_a_truncated_model_is_refused(good, tmp_path, capfd):
    (tmp_path / "model.onnx").write_bytes(good["model"].read_bytes()[:-500])
    _refused_fit(good, capfd, model=tmp_path / "model.onnx", says="truncated")


def test_a_model_that_onnxruntime_cannot_run_is_refused(good, tmp_path, capfd):
    model = model_of(node("Magic", ["x"], ["y"], domain="org.nobody"), domains=["org.nobody"])
    _refused_fit(good, capfd, model=_save_model(tmp_path / "m.onnx", model), says="Magic")


def test_a_model_without_an_activation_is_refused(good, tmp_path, capfd):
    model = model_of(node("Flatten", ["x"], ["y"]), x=("N", 1, 8, 8), y=("N", 64))
    _refused_fit(good, capfd, model=_save_model(tmp_path / "m.onnx", model), says="no activation to bound")


def test_a_model_with_two_outputs_is_refused(good, tmp_path, capfd):
    model = model_of(node("Relu", ["x"], ["h"]), node("Neg", ["h"], ["y"]))
    model.graph.output.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, ["N", 3]))
    _refused_fit(good, capfd, model=_save_model(tmp_path / "m.onnx", model), says="2 outputs (y, h)")


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
def test_arrays_that_do_not_fit_are_refused(good, tmp_path, capfd, name):
    arrays, says = BAD_DATA[name]
    _refused_fit(good, capfd, data=_save_data(tmp_path / "data.npz", **arrays), says=says)


def test_missing_data_are_refused(good, tmp_path, capfd):
    _refused_fit(good, capfd, data=tmp_path / "none.npz", says="does not exist")


def test_an_empty_folder_is_refused(good, tmp_path, capfd):
    (tmp_path / "empty").mkdir()
    _refused_fit(good, capfd, data=tmp_path / "empty", says="holds no images")


def test_class_folders_of_another_number_are_refused(good, tmp_path, capfd):
    from PIL import Image

    (tmp_path / "images" / "cat").mkdir(parents=True)
    Image.new("L", (8, 8)).save(tmp_path / "images" / "cat" / "1.png")
    _refused_fit(good, capfd, data=tmp_path / "images", says="10 classes")


def test_too_few_samples_are_refused_with_how_many_are_missing(good, capfd):
    line = _refused(_fit(good, "--limit", "50"), capfd, "50 samples are too few", "are missing", "--target-fpr")
    missing = int(line.split(" are missing")[0].split()[-1])
    assert _fit(good, "--limit", str(50 + missing)) == 0


def test_the_refusal_of_too_few_samples_names_the_limit_only_where_it_binds(good, digits, tmp_path, capfd):
    assert "--limit" in _refused(_fit(good, "--limit", "50"), capfd)
    with np.load(digits.clean) as arrays:
        data = _save_data(tmp_path / "few.npz", inputs=arrays["inputs"][:50])
    assert "--limit" not in _refused(_fit({**good, "data": data}), capfd)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--method", "magic"], "--method"),
        (["--score", "magic"], "--score"),
        (["--target-fpr", "0"], "target_fpr is 0"),
        (["--target-fpr", "1"], "target_fpr is 1"),
        (["--target-fpr", "-1"], "target_fpr is -1"),
        (["--target-fpr", "nan"], "target_fpr is nan"),
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
        (["--unknown"], "--unknown"),
    ],
)
def test_options_that_mean_nothing_are_refused(good, capfd, options, says):
    _refused_fit(good, capfd, *options, says=says)


@pytest.mark.parametrize("arguments", [[], ["guess"], ["fit"], ["fit", "model.onnx"], ["show"], ["evaluate", "b"]])
def test_an_incomplete_command_line_is_refused(capfd, arguments):
    _refused(main(arguments), capfd, "--help")


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help"])
    assert stopped.value.code == 0
    assert "--target-fpr" in capsys.readouterr().out


def test_a_folder_that_is_no_bundle_is_left_alone(good, tmp_path, capfd):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    _refused(_fit({**good, "bundle": tmp_path / "photos"}), capfd, "is no bundle")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_bundle_below_a_file_is_refused(good, tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"")
    _refused(_fit({**good, "bundle": tmp_path / "file" / "bundle"}), capfd, "bundle")


def test_a_place_that_is_taken_is_refused_before_any_work(good, digits, tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"")
    line = _refused(_fit({**good, "model": tmp_path / "none.onnx", "bundle": tmp_path / "file"}), capfd)
    assert "none.onnx" not in line


def test_an_interrupted_fit_says_so_and_writes_nothing(good, monkeypatch, capfd):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrate.__main__.fit_bundle", interrupt)
    assert _fit(good) == 130
    assert capfd.readouterr().err == "guard-calibrate: interrupted; nothing was written\n"


@pytest.mark.parametrize("command", ["show", "evaluate"])
@pytest.mark.parametrize("damage", ["missing", "altered", "no manifest", "no folder"])
def test_a_damaged_bundle_is_refused(digits, digits_bundle, tmp_path, capfd, command, damage):
    bundle = shutil.copytree(digits_bundle, tmp_path / "bundle")
    if damage == "missing":
        (bundle / "bounded.onnx").unlink()
    elif damage == "altered":
        (bundle / "bounded.onnx").write_bytes(b"another model")
    elif damage == "no manifest":
        (bundle / "manifest.json").unlink()
    else:
        shutil.rmtree(bundle)
    options = ["--clean", str(digits.test)] if command == "evaluate" else []
    _refused(main([command, str(bundle), *options]), capfd, str(bundle))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--clean", "none.npz"], "none.npz does not exist"),
        (["--clean", "CLEAN", "--triggered", "none.npz"], "none.npz does not exist"),
        (["--clean", "CLEAN", "--triggered", "CLEAN", "--target-class", "10"], "--target-class is 10"),
        (["--clean", "CLEAN", "--triggered", "CLEAN", "--target-class", "-1"], "--target-class is -1"),
        (["--clean", "CLEAN", "--limit", "0"], "limit 0"),
        (["--clean", "CLEAN", "--seed", "x"], "no whole number"),
    ],
)
def test_an_evaluation_that_cannot_be_is_refused(digits, digits_bundle, capfd, options, says):
    arguments = [str(digits.test) if option == "CLEAN" else option for option in options]
    _refused(main(["evaluate", str(digits_bundle), *arguments]), capfd, says)


@pytest.mark.parametrize("place", [".", "/", "", "FILE/figures.json", "FOLDER"])
def test_figures_that_cannot_be_written_leave_nothing_behind(digits, digits_bundle, tmp_path, capfd, place):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    target = place.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path / "folder"))
    _refused(main(["evaluate", str(digits_bundle), "--clean", str(digits.test), "--json", target]), capfd)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_the_command_runs_as_a_program_and_prints_one_line_of_error(tmp_path):
    arguments = ["fit", "none.onnx", "--data", "none", "--bundle", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "calibrate", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "guard-calibrate: error: none.onnx is no file; give the path of an ONNX model\n"
    assert list(tmp_path.iterdir()) == []
