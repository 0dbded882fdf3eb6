"""guard-calibrate: what it prints, and one line for everything that cannot be done."""

import json
import shutil
import subprocess
import sys
from dataclasses import fields

import numpy as np
import pytest
from calibrate_runs import check_refused, fit_with, save_data

from calibrate.__main__ import main
from calibrate.evaluation import Evaluation
from calibrate.pipeline import PARTS
from guard.bundle import load_bundle


def test_a_fit_says_what_it_measured_and_where_the_bundle_is(good_fit, capsys):
    assert fit_with(good_fit) == 0
    out, _ = capsys.readouterr()
    assert "measured_fpr" in out
    assert out.endswith(f"bundle written to {good_fit['bundle']}; look at {good_fit['bundle'] / 'report.html'}\n")
    assert load_bundle(good_fit["bundle"]).manifest.model["name"] == "digits"


@pytest.mark.parametrize(("passes", "score"), [("one", "one_pass"), ("both", "relative_divergence")])
def test_passes_choose_the_score_that_takes_so_many(good_fit, passes, score):
    assert fit_with(good_fit, "--passes", passes) == 0
    bundle = load_bundle(good_fit["bundle"])
    assert bundle.manifest.score == score
    assert (bundle.detector is not None) == (passes == "one")


def test_passes_and_score_exclude_each_other(good_fit, capfd):
    assert "--passes" in check_refused(fit_with(good_fit, "--passes", "both", "--score", "divergence"), capfd)


def test_progress_goes_to_standard_error_line_by_line(good_fit, capsys):
    fit_with(good_fit)
    out, err = capsys.readouterr()
    n = round(PARTS[1] * 700)
    assert f"scoring the threshold set: {n} of {n}" in err
    assert "scoring the threshold set" not in out
    assert "\r" not in err


def test_a_fit_without_labels_warns_on_standard_error(good_fit, digits, tmp_path, capsys):
    with np.load(digits.clean) as arrays:
        data = save_data(tmp_path / "unlabelled.npz", inputs=arrays["inputs"])
    assert fit_with({**good_fit, "data": data}) == 0
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
        data = save_data(tmp_path / "t.npz", inputs=arrays["inputs"], labels=arrays["labels"])
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


@pytest.mark.parametrize("arguments", [[], ["guess"], ["fit"], ["fit", "model.onnx"], ["show"], ["evaluate", "b"]])
def test_an_incomplete_command_line_is_refused(capfd, arguments):
    check_refused(main(arguments), capfd, "--help")


def test_help_is_no_error(capsys):
    with pytest.raises(SystemExit) as stopped:
        main(["fit", "--help"])
    assert stopped.value.code == 0
    assert "--target-fpr" in capsys.readouterr().out


def test_a_folder_that_is_no_bundle_is_left_alone(good_fit, tmp_path, capfd):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.png").write_bytes(b"cat")
    check_refused(fit_with({**good_fit, "bundle": tmp_path / "photos"}), capfd, "is no bundle")
    assert [p.name for p in (tmp_path / "photos").iterdir()] == ["cat.png"]


def test_a_bundle_below_a_file_is_refused(good_fit, tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"")
    check_refused(fit_with({**good_fit, "bundle": tmp_path / "file" / "bundle"}), capfd, "bundle")


def test_a_place_that_is_taken_is_refused_before_any_work(good_fit, digits, tmp_path, capfd):
    (tmp_path / "file").write_bytes(b"")
    line = check_refused(fit_with({**good_fit, "model": tmp_path / "none.onnx", "bundle": tmp_path / "file"}), capfd)
    assert "none.onnx" not in line


def test_an_interrupted_fit_says_so_and_writes_nothing(good_fit, monkeypatch, capfd):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrate.__main__.fit_bundle", interrupt)
    assert fit_with(good_fit) == 130
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
    check_refused(main([command, str(bundle), *options]), capfd, str(bundle))


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
    check_refused(main(["evaluate", str(digits_bundle), *arguments]), capfd, says)


@pytest.mark.parametrize("place", [".", "/", "", "FILE/figures.json", "FOLDER"])
def test_figures_that_cannot_be_written_leave_nothing_behind(digits, digits_bundle, tmp_path, capfd, place):
    (tmp_path / "file").write_bytes(b"")
    (tmp_path / "folder").mkdir()
    target = place.replace("FILE", str(tmp_path / "file")).replace("FOLDER", str(tmp_path / "folder"))
    check_refused(main(["evaluate", str(digits_bundle), "--clean", str(digits.test), "--json", target]), capfd)
    assert sorted(p.name for p in tmp_path.rglob("*")) == ["file", "folder"]


def test_figures_inside_the_bundle_would_break_it_and_are_refused(digits, digits_bundle, capfd):
    target = str(digits_bundle / "figures.json")
    arguments = ["evaluate", str(digits_bundle), "--clean", str(digits.test), "--json", target]
    check_refused(main(arguments), capfd, "inside the bundle")
    assert main(["show", str(digits_bundle)]) == 0


def test_the_command_runs_as_a_program_and_prints_one_line_of_error(tmp_path):
    arguments = ["fit", "none.onnx", "--data", "none", "--bundle", "out"]
    done = subprocess.run(
        [sys.executable, "-m", "calibrate", *arguments], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "guard-calibrate: error: none.onnx is no file; give the path of an ONNX model\n"
    assert list(tmp_path.iterdir()) == []
