"""A detector with round numbers, and a bundle of tiny models that have one, for tests of what reads them.

The original is y = relu(x) on (N, 3). Its profile is its largest entry and three zeros; its head is bounded at 4.
"""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from bundles import bounded_model, clean_scores, manifest, original_model
from onnx import TensorProto, helper

from guard.bundle import BOUNDED, DETECTOR, OBSERVED, ORIGINAL, THRESHOLDS, pack_scores, save_bundle
from guard.detector import Detector, Standard, pack_detector
from guard.scores import ONE_PASS

__all__ = ["OUTPUTS", "detecting_bundle", "detector", "observed_model"]

CAP = 4.0
OUTPUTS: Mapping[str, object] = {
    "profile": "profile", "head": "head", "sites": ["relu"], "capped": {"relu": "y"}, "capped_at": {},
}  # fmt: skip
"""What the manifest says of the detector."""


def detector(**changes) -> Detector:
    """Return the detector of one site that counts the squares of its profile, and lost margin, as they are."""
    one = Standard(origin=0.0, spread=1.0)
    plain = Detector(center=np.zeros(4), scale=np.ones(4), precision=np.eye(4), profile=one, head=one, fill=np.zeros(0))
    return replace(plain, **changes)


def observed_model() -> bytes:
    """Return y = relu(x) with its profile and with min(y, 4)."""
    nodes = [
        helper.make_node("Relu", ["x"], ["y"]),
        helper.make_node("ReduceMax", ["y"], ["largest"], axes=[1]),
        helper.make_node("Mul", ["largest", "first"], ["profile"]),
        helper.make_node("Min", ["y", "cap"], ["head"]),
    ]
    shapes = {"x": ["N", 3], "y": ["N", 3], "profile": ["N", 4], "head": ["N", 3]}
    infos = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in shapes.items()]
    constants = [
        helper.make_tensor("cap", TensorProto.FLOAT, [], [CAP]),
        helper.make_tensor("first", TensorProto.FLOAT, [4], [1, 0, 0, 0]),
    ]
    graph = helper.make_graph(nodes, "observed", infos[:1], infos[1:], initializer=constants)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    return bytes(model.SerializeToString())


def detecting_bundle(folder: Path, *, content: bytes | None = None, **outputs: object) -> Path:
    """Write a bundle with a detector into the folder and return its path.

    Args:
        folder: An empty folder.
        content: Of detector.npz, where it is another than the detector's.
        outputs: What the manifest says otherwise of the detector.
    """
    contents = {
        ORIGINAL: original_model(),
        BOUNDED: bounded_model(),
        THRESHOLDS: pack_scores(clean_scores()),
        OBSERVED: observed_model(),
        DETECTOR: pack_detector(detector()) if content is None else content,
    }
    said = replace(manifest(), score=ONE_PASS, detector={**OUTPUTS, **outputs})
    save_bundle(folder / "bundle", said, contents)
    return folder / "bundle"
