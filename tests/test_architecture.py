"""Who may import whom. This file is the architecture document; what it does not list is not allowed."""

import ast
import re
import subprocess
import sys
from importlib.metadata import requires
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

THIRD_PARTY = {
    "guard": {"numpy", "onnxruntime"},
    "calibrate": {"guard", "numpy", "onnxruntime", "onnx", "torch", "PIL", "matplotlib", "google.protobuf"},
    "serving": {"guard", "numpy", "ml_dtypes", "grpc", "grpc_health", "grpc_reflection", "google.protobuf",
                "prometheus_client", "aiohttp", "opentelemetry", "ray"},
}  # fmt: skip

GUARD_IN_ORDER = (
    {"errors"}, {"types"}, {"folder", "input_checks", "json_checks", "places", "rows", "scores", "score_file",
                            "conformal", "betting", "views"},
    {"manifest", "detector", "monitor"}, {"model"}, {"bundle"}, {"pair"}, {"corrector", "evidence"}, {"runtime"},
)  # fmt: skip
"""Low to high: a module imports from lower layers only, never from its own."""

PROTOBUF_MESSAGES = {
    "alongside", "codec", "descriptions", "exchange", "front", "interceptor", "relayed_calls", "repository_calls",
    "rest_codec", "server", "servicer",
    "ray_app",
}  # fmt: skip
"""The modules of serving that see the protocol's messages."""


def imports(package):
    """Yield the name of every module of a package with the modules that it imports."""
    for file in sorted((ROOT / package).rglob("*.py")):
        if "_pb" in file.parts:
            continue
        name = ".".join(file.relative_to(ROOT).with_suffix("").parts)
        for node in ast.walk(ast.parse(file.read_text())):
            assert not (isinstance(node, ast.ImportFrom) and node.level), f"{name} imports relatively"
            if isinstance(node, ast.ImportFrom):
                yield from ((name, f"{node.module}.{alias.name}") for alias in node.names)
            elif isinstance(node, ast.Import):
                yield from ((name, alias.name) for alias in node.names)


def is_within(module, roots):
    return any(f"{module}.".startswith(f"{root}.") for root in roots)


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_a_package_imports_itself_the_standard_library_and_what_is_listed(package):
    allowed = {package, *sys.stdlib_module_names, *THIRD_PARTY[package]}
    assert [pair for pair in imports(package) if not is_within(pair[1], allowed)] == []


@pytest.mark.parametrize("package", THIRD_PARTY)
def test_what_is_listed_is_imported(package):
    found = [module for _, module in imports(package)]
    assert [root for root in THIRD_PARTY[package] if not any(is_within(module, {root}) for module in found)] == []


def test_every_module_of_the_guard_imports_from_lower_layers_only():
    layers = {f"guard.{module}": i for i, layer in enumerate(GUARD_IN_ORDER) for module in layer}
    layers["guard.__init__"] = len(GUARD_IN_ORDER)
    assert layers.keys() == {".".join(f.relative_to(ROOT).with_suffix("").parts) for f in ROOT.glob("guard/*.py")}
    pairs = [
        (name, ".".join(module.split(".")[:2])) for name, module in imports("guard") if is_within(module, {"guard"})
    ]
    assert pairs
    assert [pair for pair in pairs if layers.get(pair[1], len(layers)) >= layers[pair[0]]] == []


def test_only_the_edge_of_serving_sees_the_protocols_messages():
    assert {name for name, module in imports("serving") if is_within(module, {"serving._pb"})} == {
        f"serving.{module}" for module in PROTOBUF_MESSAGES
    }


@pytest.mark.parametrize(
    ("module", "absent"),
    [
        ("guard", {"torch", "onnx", "grpc", "google.protobuf", "prometheus_client", "calibrate", "serving"}),
        ("serving.__main__", {"torch", "onnx", "PIL", "matplotlib", "calibrate", "aiohttp", "opentelemetry", "ray"}),
    ],
)
def test_what_runs_online_loads_nothing_of_what_calibrates(module, absent):
    program = f"import sys, {module}; print(*sys.modules)"
    ran = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True)
    assert module in ran.stdout.split()
    assert absent.isdisjoint(ran.stdout.split())


def test_a_serving_install_calibrates_nothing_and_says_how_to():
    hide = (
        "import sys; sys.modules.update(dict.fromkeys(('onnx', 'torch'))); sys.argv = ['guard-calibrate', 'show', 'x']"
    )
    code = f"{hide}; import runpy; runpy.run_module('calibrate', run_name='__main__')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr == "guard-calibrate: error: onnx is missing; pip install 'trigger-guard[calibrate]'\n"


def test_a_serving_install_needs_neither_torch_nor_onnx():
    needed = {re.split(r"[^\w-]", r)[0] for r in requires("trigger-guard") if "extra ==" not in r}
    assert needed.isdisjoint({"torch", "onnx", "pillow", "matplotlib"})
    assert {"numpy", "onnxruntime-gpu", "grpcio", "prometheus-client"} <= needed
