"""Tiny bundles with exact answers, for tests of everything that reads a bundle.

The original is ``y = relu(x)`` on (N, 3); the bounded model caps y at 4. So what the guard must say can be read off:
``CLEAN`` rows agree in both models, and ``TRIGGERED`` rows lose the margin of their largest entry.
"""

from pathlib import Path

import numpy as np
from onnx import NodeProto, TensorProto, helper

from guard.bundle import BOUNDED, ORIGINAL, THRESHOLDS, pack_scores, save_bundle
from guard.conformal import fit_threshold
from guard.manifest import FORMAT_VERSION, Manifest
from guard.types import TensorSpec

__all__ = [
    "CLEAN",
    "CORRECTED",
    "TRIGGERED",
    "bounded_model",
    "manifest",
    "original_model",
    "shifted_bundle",
    "tiny_bundle",
]

CAP = 4.0
N_SCORES = 200

CLEAN = np.array([[1, 2, 3]], dtype=np.float32)
"""(1, 3) answered with class 2 by both models."""

TRIGGERED = np.array([[9, 1, 0]], dtype=np.float32)
"""(1, 3) class 0 by a margin of 8, of which the bounded model leaves 3: divergence 5."""

CORRECTED = np.array([[0, 1, 0]], dtype=np.float32)
"""(1, 3) the answer to TRIGGERED: the bounded row [4, 1, 0] with class 0 ruled out."""


def original_model(dtype: int = TensorProto.FLOAT) -> bytes:
    """Return y = relu(x) as ONNX."""
    return _model([helper.make_node("Relu", ["x"], ["y"])], dtype)


def bounded_model(dtype: int = TensorProto.FLOAT, *, cap: float = CAP) -> bytes:
    """Return y = min(relu(x), cap) as ONNX."""
    value = helper.make_tensor("cap", dtype, [], [cap])
    return _model(
        [
            helper.make_node("Relu", ["x"], ["relu"]),
            helper.make_node("Constant", [], ["cap"], value=value),
            helper.make_node("Min", ["relu", "cap"], ["y"]),
        ],
        dtype,
    )


def manifest(*, name: str = "tiny", dtype: str = "float32") -> Manifest:
    """Return the manifest of the tiny bundle: alert above about .0099, correct above about .009."""
    scores = clean_scores()
    thresholds = {"alert": fit_threshold(scores, target_fpr=0.01), "correct": fit_threshold(scores, target_fpr=0.1)}
    return Manifest(
        format_version=FORMAT_VERSION,
        model={"name": name, "sha256": "0" * 64, "n_bytes": 1},
        files={},
        inputs=(TensorSpec(name="x", dtype=dtype, shape=(None, 3)),),
        output=TensorSpec(name="y", dtype=dtype, shape=(None, 3)),
        output_kind="logits",
        logits="y",
        score="divergence",
        thresholds=thresholds,
        preprocessing={"scale": 255.0, "mean": [0.0], "std": [1.0], "layout": "nchw"},
        method={"name": "by-hand", "settings": {}},
        sites=[],
        calibration={},
        versions={},
        seed=0,
    )


def clean_scores() -> np.ndarray:
    """Return (200,) scores, evenly between 0 and .01: any cut row scores above them all."""
    return np.linspace(0, 0.01, N_SCORES)


def tiny_bundle(folder: Path, *, name: str = "tiny", bounded: bytes | None = None) -> Path:
    """Write the bundle into ``folder/bundle`` and return its path.

    Args:
        folder: An empty folder, such as pytest's tmp_path.
        name: The model's name in the manifest.
        bounded: Another bounded model than the one that caps at 4.
    """
    contents = {
        ORIGINAL: original_model(),
        BOUNDED: bounded or bounded_model(),
        THRESHOLDS: pack_scores(clean_scores()),
    }
    save_bundle(folder / "bundle", manifest(name=name), contents)
    return folder / "bundle"


def shifted_bundle(folder: Path, shift: float) -> Path:
    """Write a bundle at ``folder`` that answers as the tiny one does, all outputs greater by ``shift``; return it."""
    shifts = helper.make_node("Constant", [], ["shift"], value=helper.make_tensor("s", TensorProto.FLOAT, [], [shift]))
    cap = helper.make_node("Constant", [], ["cap"], value=helper.make_tensor("c", TensorProto.FLOAT, [], [CAP]))
    relu, capped = helper.make_node("Relu", ["x"], ["r"]), helper.make_node("Min", ["r", "cap"], ["m"])
    contents = {
        ORIGINAL: _model([shifts, relu, helper.make_node("Add", ["r", "shift"], ["y"])], TensorProto.FLOAT),
        BOUNDED: _model([shifts, cap, relu, capped, helper.make_node("Add", ["m", "shift"], ["y"])], TensorProto.FLOAT),
        THRESHOLDS: pack_scores(clean_scores()),
    }
    save_bundle(folder, manifest(), contents)
    return folder


def _model(nodes: list[NodeProto], dtype: int) -> bytes:
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info("x", dtype, ["N", 3])],
        [helper.make_tensor_value_info("y", dtype, ["N", 3])],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())
