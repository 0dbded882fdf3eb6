"""guard-calibrate inspect: the order of looks, what is left out, what is written, and what is refused."""

import json
from dataclasses import replace
from functools import partial

import numpy as np
import onnx
import pytest
from calibrate_runs import check_refused, save_data
from small_graphs import model_of, node
from texts import save_texts, text_classifier

from calibrate.__main__ import main
from calibrate.inspect_pipeline import PUBLISHED, InspectSettings, Looks, inspect_model
from calibrate.inspection.ban import BanSettings
from calibrate.inspection.mesa import MesaSettings
from calibrate.inspection.report import render_inspection
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.triggers import load_triggers
from calibrate.inspection.verdict import GREY, NO_EVIDENCE, SUSPECTED
from calibrate.preprocessing import Preprocessing
from guard.errors import CalibrationError, InputError

FAST = Looks(
    suspicion=PUBLISHED.suspicion,
    ban=partial(PUBLISHED.ban, settings=BanSettings(seeds=2, mask_steps=20, noise_steps=8)),
    mesa=partial(
        PUBLISHED.mesa,
        settings=MesaSettings(kinds=(TriggerKind(family="patch", size=3),), betas=(0.1,), iterations=5),
    ),
)
KEYS = ["verdict", "suspected_target_class", "lint", "suspicion", "ban", "mesa"]


def silent(stage: str, done: int, total: int) -> None:
    """Draw nothing."""


def look(model, data, *, looks=FAST, **settings):
    return inspect_model(model, data, InspectSettings(preprocessing=Preprocessing(), **settings), silent, looks=looks)


def run(digits, *options: str, data=None, model=None) -> int:
    return main(["inspect", str(model or digits.model), "--data", str(data or digits.clean), *options])


def some(digits, path, rows, **changes):
    """Save some of the clean samples, with other labels where given; None leaves them out."""
    with np.load(digits.clean) as arrays:
        held = {"inputs": arrays["inputs"][rows], "labels": arrays["labels"][rows], **changes}
    return save_data(path, **{name: value for name, value in held.items() if value is not None})


@pytest.fixture(scope="module")
def deepest(digits):
    """Return what is found in full depth."""
    return look(digits.model, digits.clean, depth="full")


def test_everything_is_looked_at_in_full_depth(deepest):
    assert deepest.not_looked_at == ()
    assert [e.look for e in deepest.verdict.evidence] == ["lint", "suspicion", "ban", "mesa"]
    assert deepest.mesa.control.target_class != deepest.mesa.suspected.target_class
    json.dumps(deepest.summary(), allow_nan=False)
    assert list(deepest.summary())[: len(KEYS)] == KEYS


def test_the_page_shows_every_look_and_opens_nothing_from_elsewhere(deepest):
    page = render_inspection(deepest).decode()
    assert page == render_inspection(deepest).decode()
    assert page.count("<svg") == page.count("</svg>") >= 3
    for heading in ("Evidence", "Graph and weights", "Channels by suspicion", "Votes under", "Recovered triggers"):
        assert f"<h2>{heading}" in page
    assert "http" not in page
    assert "<script" not in page


def test_names_in_the_page_are_escaped(deepest):
    (prior,) = [e for e in deepest.verdict.evidence if e.look == "suspicion"]
    verdict = replace(deepest.verdict, evidence=(replace(prior, statement="<b>"),))
    page = render_inspection(replace(deepest, model={"name": "<i>", "sha256": ""}, verdict=verdict)).decode()
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.parametrize(("depth", "left"), [("quick", ["ban", "mesa"]), ("standard", ["mesa"]), ("full", [])])
def test_the_depth_decides_what_is_looked_at(digits, depth, left):
    asked = []
    order = Looks(
        suspicion=lambda problem: asked.append("suspicion") or PUBLISHED.suspicion(problem),
        ban=lambda problem: asked.append("ban") or FAST.ban(problem),
        mesa=lambda problem, target: asked.append("mesa") or FAST.mesa(problem, target),
    )
    found = look(digits.model, digits.clean, looks=order, depth=depth)
    assert asked == ["suspicion", "ban", "mesa", "mesa"][: 4 - 2 * ("mesa" in left) - ("ban" in left)]
    assert [what.look for what in found.not_looked_at] == left
    assert [found.summary()[name] for name in left] == [None] * len(left)


@pytest.mark.parametrize(("n", "left"), [(1, ["suspicion", "ban", "mesa"]), (49, ["ban", "mesa"]), (50, ["mesa"])])
def test_the_number_of_samples_decides_too_and_the_reason_names_it(digits, tmp_path, n, left):
    found = look(digits.model, some(digits, tmp_path / "few.npz", slice(n)), depth="full")
    assert [what.look for what in found.not_looked_at] == left
    assert found.not_looked_at[-1].reason == f"it takes 500 clean samples and there are {n}; give more"


def test_few_samples_never_make_bans_finding_strong(digits, tmp_path):
    found = look(digits.model, some(digits, tmp_path / "few.npz", slice(200)))
    assert found.ban.verdict != "suspicious"


def test_a_look_that_fails_is_left_out_with_its_reason_and_the_rest_is_taken(digits):
    def refuse(problem):
        raise CalibrationError("no gradient can be computed through Cumulate 'c'")

    found = look(digits.model, digits.clean, looks=replace(FAST, ban=refuse), depth="full")
    assert [(what.look, what.reason) for what in found.not_looked_at] == [
        ("ban", "no gradient can be computed through Cumulate 'c'")
    ]
    assert found.mesa is not None


def test_samples_without_labels_are_looked_at_with_the_models_own(digits, tmp_path):
    found = look(digits.model, some(digits, tmp_path / "plain.npz", slice(60), labels=None))
    assert not found.has_labels
    assert found.ban is not None


def test_samples_of_one_class_leave_nothing_to_compare(digits, tmp_path):
    with np.load(digits.clean) as arrays:
        rows = np.flatnonzero(arrays["labels"] == 3)
    found = look(digits.model, some(digits, tmp_path / "threes.npz", rows))
    assert found.not_looked_at[0].reason.startswith(f"all {len(rows)} clean samples are of class 3")


def test_predictions_of_one_class_leave_nothing_to_compare_either(digits, tmp_path):
    nodes = [node("Relu", ["x"], ["h"]), node("Flatten", ["h"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"])]
    weights = {"w": np.zeros((64, 10)), "b": np.eye(10)[3]}
    onnx.save(model_of(*nodes, x=("N", 1, 8, 8), y=("N", 10), weights=weights), tmp_path / "three.onnx")
    found = look(tmp_path / "three.onnx", some(digits, tmp_path / "plain.npz", slice(60), labels=None))
    reason = {left.look: left.reason for left in found.not_looked_at}["ban"]
    assert reason.startswith("all 60 clean samples are by the model's answers of class 3")


def test_labels_that_the_model_mostly_disagrees_with_are_told_before_the_verdict(digits, tmp_path, capfd):
    with np.load(digits.clean) as arrays:
        labels = np.where(np.arange(100) % 10 < 7, arrays["labels"][:100] + 1, arrays["labels"][:100]) % 10
    data = some(digits, tmp_path / "mostly.npz", slice(100), labels=labels)
    run(digits, "--depth", "quick", "--json", str(tmp_path / "found.json"), data=data)
    assert "warning: The model agrees with only" in capfd.readouterr().err
    assert json.loads((tmp_path / "found.json").read_text())["label_agreement"] < 0.4


def test_labels_that_are_not_the_models_are_refused(digits, tmp_path, capfd):
    with np.load(digits.clean) as arrays:
        labels = (arrays["labels"][:100] + 1) % 10
    data = some(digits, tmp_path / "shifted.npz", slice(100), labels=labels)
    check_refused(run(digits, data=data), capfd, "the model agrees with the labels of", "--mean")


def test_a_model_with_several_inputs_is_looked_at_but_for_its_triggers(tmp_path):
    onnx.save(text_classifier(), tmp_path / "texts.onnx")
    found = look(tmp_path / "texts.onnx", save_texts(tmp_path / "texts.npz", 600), depth="full")
    assert found.suspicion is not None
    reasons = {what.look: what.reason for what in found.not_looked_at}
    assert "2 inputs" in reasons["mesa"]
    assert "ban" not in reasons or "nothing to put noise on" in reasons["ban"]  # this one has weights in its head only


def test_an_output_besides_the_classes_is_noted(digits, tmp_path):
    model = onnx.load(digits.model)
    model.graph.node.append(node("ArgMax", [model.graph.output[0].name], ["label"], axis=1))
    model.graph.output.append(onnx.helper.make_tensor_value_info("label", onnx.TensorProto.INT64, ["N", 1]))
    onnx.save(model, tmp_path / "model.onnx")
    found = look(tmp_path / "model.onnx", digits.clean, depth="quick")
    assert [(f.kind, f.place) for f in found.lint if f.kind == "extra_output"] == [("extra_output", "label")]


def test_a_look_that_needs_a_gradient_names_no_option_of_another_command(tmp_path, capsys):
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["a"]), node("Det", ["s"], ["d"])]
    nodes[2:2] = [node("Reshape", ["a", "square"], ["s"])]
    nodes += [node("Unsqueeze", ["d", "one"], ["u"]), node("Add", ["a", "u"], ["b"]), node("MatMul", ["b", "w"], ["y"])]
    weights = {"w": np.eye(4), "square": np.array([-1, 2, 2]), "one": np.array([1])}
    onnx.save(model_of(*nodes, x=("N", 4), y=("N", 4), weights=weights), tmp_path / "model.onnx")
    inputs = np.random.default_rng(0).normal(size=(99, 4)).astype(np.float32)
    data = save_data(tmp_path / "clean.npz", inputs=inputs, labels=inputs.argmax(axis=1))
    assert main(["inspect", str(tmp_path / "model.onnx"), "--data", str(data)]) in (0, 3)
    shown = capsys.readouterr().out
    assert "no gradient can be computed through ai.onnx::Det" in shown
    assert "--method" not in shown


def test_a_model_without_activations_is_linted_all_the_same(tmp_path):
    model = model_of(node("MatMul", ["x", "w"], ["y"]), weights={"w": np.eye(3)})
    onnx.save(model, tmp_path / "linear.onnx")
    data = save_data(tmp_path / "few.npz", inputs=np.eye(3, dtype=np.float32), labels=np.arange(3))
    found = look(tmp_path / "linear.onnx", data)
    assert [finding.kind for finding in found.lint] == ["no_sites"]
    assert "no activation to bound" in found.not_looked_at[0].reason


def test_the_verdict_is_printed_first_then_the_evidence_then_what_was_left_out(digits, capsys):
    status = run(digits, "--depth", "quick")
    out, err = capsys.readouterr()
    verdict, lint, suspicion, *left = out.splitlines()
    assert verdict.partition(",")[0] in (NO_EVIDENCE, GREY)
    assert (status, "clean" in verdict) == (0, False)
    assert lint.split("  ")[0] == "graph"
    assert "p-value" in suspicion
    assert left[:2] == ["", "not looked at:"]
    assert "ask for --depth standard" in left[2]
    assert "activations: " in err


def test_a_suspected_backdoor_is_told_by_the_exit_status(digits, tmp_path, capsys):
    model = onnx.load(digits.model)
    output = model.graph.output[0].name
    for made in model.graph.node:
        made.output[:] = ["answer" if name == output else name for name in made.output]
    shadow = [node("ReduceMax", [model.graph.input[0].name], ["peak"], axes=[1, 2, 3], keepdims=1)]
    shadow += [node("Flatten", ["peak"], ["switch"]), node("Add", ["answer", "switch"], [output])]
    model.graph.node.extend(shadow)
    onnx.save(model, tmp_path / "shadowed.onnx")
    assert run(digits, "--depth", "quick", model=tmp_path / "shadowed.onnx") == 3
    assert capsys.readouterr().out.startswith(SUSPECTED)


def test_the_files_are_written_whole_and_hold_what_was_found(digits, tmp_path):
    places = {flag: tmp_path / "deep" / f"found.{flag}" for flag in ("json", "report")}
    run(digits, "--depth", "quick", *(f"--{flag}={place}" for flag, place in places.items()))
    found = json.loads(places["json"].read_text())
    assert list(found)[: len(KEYS)] == KEYS
    assert (found["ban"], found["mesa"]) == (None, None)
    assert found["model"]["name"] == "digits"
    assert places["report"].read_text().startswith("<!doctype html>")
    assert {p.name for p in (tmp_path / "deep").iterdir()} == {"found.json", "found.report"}


def test_recovered_triggers_are_saved(digits, tmp_path, monkeypatch):
    monkeypatch.setattr("calibrate.__main__.inspect_model", partial(inspect_model, looks=FAST))
    run(digits, "--depth", "full", "--triggers", str(tmp_path / "triggers.npz"))
    saved = load_triggers(tmp_path / "triggers.npz")
    assert [(d.kind.family, d.beta) for d in saved] == [("patch", 0.1)]


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--json", "/"], "--json is '/'"),
        (["--report", ""], "--report is ''"),
        (["--depth", "full", "--triggers", "."], "--triggers is '.'"),
        (["--triggers", "t.npz"], "--depth full"),
        (["--json", "same.txt", "--report", "./same.txt"], "--json and --report both name './same.txt'"),
        (["--depth", "deepest"], "--depth"),
        (["--limit", "0"], "limit 0"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_looked_at(digits, capfd, options, says):
    line = check_refused(run(digits, *options), capfd, says)
    assert "activations" not in line


def test_an_unknown_model_or_data_is_refused(digits, tmp_path, capfd):
    check_refused(run(digits, model=tmp_path / "none.onnx"), capfd, "none.onnx is no file")
    check_refused(run(digits, data=tmp_path / "none.npz"), capfd, "none.npz does not exist")


def test_a_device_that_is_not_there_is_refused(digits):
    with pytest.raises(InputError, match="device is 'abacus'"):
        look(digits.model, digits.clean, device="abacus")


def test_an_interrupt_writes_nothing(digits, tmp_path, monkeypatch, capfd):
    def interrupt(*arguments):
        raise KeyboardInterrupt

    monkeypatch.setattr("calibrate.__main__.inspect_model", interrupt)
    assert run(digits, "--json", str(tmp_path / "found.json")) == 130
    assert capfd.readouterr().err == "guard-calibrate: interrupted; nothing was written\n"
    assert list(tmp_path.iterdir()) == []
