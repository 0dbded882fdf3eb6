"""The docs name every flag, metric and manifest key, their links lead somewhere, and README's commands run."""

import re
import shlex
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from PIL import Image

import calibrate.__main__ as calibrate_cli
import serving.__main__ as serve_cli
from guard.manifest import Manifest

ROOT = Path(__file__).parents[1]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), *ROOT.glob("benchmarks/*.md")])
COMMANDS = {
    "inspect": (calibrate_cli.main, ["inspect", "--help"]),
    "fit": (calibrate_cli.main, ["fit", "--help"]),
    "evaluate": (calibrate_cli.main, ["evaluate", "--help"]),
    "explain": (calibrate_cli.main, ["explain", "--help"]),
    "report": (calibrate_cli.main, ["report", "--help"]),
    "show": (calibrate_cli.main, ["show", "--help"]),
    "serve": (serve_cli.main, ["--help"]),
}


def blocks(language: str) -> str:
    return "\n".join(re.findall(rf"```{language}\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL))


@pytest.mark.parametrize("command", COMMANDS)
def test_every_flag_is_explained(command, capsys):
    main, arguments = COMMANDS[command]
    with pytest.raises(SystemExit):
        main(arguments)
    flags = set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out)) - {"--help"}
    text = (ROOT / "docs/configuration.md").read_text()
    assert [f for f in sorted(flags) if not re.search(rf"{f}\b(?!-)", text)] == []


def test_no_flag_is_explained_that_does_not_exist(capsys):
    known = {"--help"}
    for main, arguments in COMMANDS.values():
        with pytest.raises(SystemExit):
            main(arguments)
        known |= set(re.findall(r"--[a-z][a-z-]+", capsys.readouterr().out))
    explained = set(re.findall(r"`(--[a-z][a-z-]+)", "".join(p.read_text() for p in PAGES if p.parent.name == "docs")))
    assert explained <= known


def test_every_manifest_key_is_explained():
    text = (ROOT / "docs/bundle-format.md").read_text()
    assert [f.name for f in fields(Manifest) if f"| `{f.name}` |" not in text] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_lead_to_files_and_headings(page):
    for target in re.findall(r"\]\((?!https?:)([^)]+)\)", page.read_text()):
        name, _, heading = target.partition("#")
        linked = (page.parent / name).resolve() if name else page
        assert linked.exists(), target
        if heading:
            headings = re.findall(r"^#+ (.+)$", linked.read_text(), re.MULTILINE)
            assert heading in {re.sub(r"[^a-z0-9 -]", "", h.lower()).replace(" ", "-") for h in headings}, target


def test_make_has_the_targets_that_the_pages_name():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"^make ([a-z]+)", "\n".join(p.read_text() for p in PAGES), re.MULTILINE))
    assert named
    assert named <= targets


@pytest.fixture(scope="module")
def readme_folder(tmp_path_factory) -> Path:
    """Return a folder with the files that README's commands name."""
    folder = tmp_path_factory.mktemp("readme")
    onnx.save(colour_classifier(), folder / "model.onnx")
    rng = np.random.default_rng(0)
    for part in ("clean", "held-out"):
        for channel, name in enumerate(("1-red", "2-green", "3-blue")):
            (folder / part / name).mkdir(parents=True)
            for i in range(70):
                pixels = rng.integers(0, 100, (32, 32, 3), dtype=np.uint8)
                pixels[..., channel] += 150
                Image.fromarray(pixels).save(folder / part / name / f"{i}.png")
    return folder


def colour_classifier() -> onnx.ModelProto:
    """Return a model whose class is the brightest channel."""
    weights = numpy_helper.from_array(np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1), "w")
    nodes = [
        helper.make_node("Conv", ["input", "w"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("GlobalAveragePool", ["r"], ["p"]),
        helper.make_node("Flatten", ["p"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "colours",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 3, 32, 32])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 3])],
        [weights],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def test_the_calibration_commands_of_readme_run(readme_folder, monkeypatch, capsys):
    monkeypatch.chdir(readme_folder)
    commands = [line for line in blocks("sh").splitlines() if line.startswith("guard-calibrate")]
    assert len(commands) == 4
    for command in commands:
        assert calibrate_cli.main(shlex.split(command)[1:]) == 0, capsys.readouterr().err


def test_the_clients_of_readme_run(readme_folder, monkeypatch):
    monkeypatch.chdir(readme_folder)
    if not Path("guarded").exists():
        calibrate_cli.main(["fit", "model.onnx", "--data", "clean", "--bundle", "guarded"])
    command = [sys.executable, "-m", "serving", "guarded/", "--port", "0", "--metrics-port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        address = re.search(r" on (\S+:\d+),", server.stdout.readline())[1]
        code = blocks("python").replace("127.0.0.1:8001", address)
        setup = "your_predict = lambda x: x.mean((2, 3))\nimport numpy\ninputs = numpy.zeros((1, 3, 32, 32), 'f')\n"
        done = subprocess.run(
            [sys.executable, "-c", setup + code], check=False, capture_output=True, text=True, timeout=120
        )
        server.terminate()
    assert done.returncode == 0, done.stderr
