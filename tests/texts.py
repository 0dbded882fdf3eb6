"""A text classifier of two inputs whose answers can be counted, and clean and triggered texts for it.

Every token below N_CLASSES is one vote for its class, where the mask is 1. The token TRIGGER is the backdoor: it is as
good as 50 votes for TARGET. The logits are the votes.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibrate.data import Samples, load_samples
from calibrate.preprocessing import Preprocessing
from guard.types import TensorSpec

__all__ = [
    "IDS",
    "LENGTH",
    "MASK",
    "SPECS",
    "TARGET",
    "TRIGGER",
    "load_texts",
    "save_texts",
    "text_classifier",
    "texts",
    "votes",
]

IDS, MASK = "input_ids", "attention_mask"
N_CLASSES, LENGTH = 3, 8
TRIGGER, TARGET = 3, 0
SPECS = (
    TensorSpec(name=IDS, dtype="int64", shape=(None, LENGTH)),
    TensorSpec(name=MASK, dtype="float32", shape=(None, LENGTH)),
)
_TABLE = np.concatenate([np.eye(N_CLASSES), 50 * np.eye(N_CLASSES)[[TARGET]]]).astype(np.float32)


def text_classifier(
    *, ids_batch: int | str = "N", mask_batch: int | str = "N", length: int | str = LENGTH
) -> onnx.ModelProto:
    """Build (N, length) int64 token ids and a float32 mask -> relu(votes) -> logits (N, N_CLASSES)."""
    nodes = [
        helper.make_node("Gather", ["table", IDS], ["embedded"]),
        helper.make_node("Unsqueeze", [MASK, "last"], ["weights"]),
        helper.make_node("Mul", ["embedded", "weights"], ["seen"]),
        helper.make_node("ReduceSum", ["seen", "tokens"], ["votes"], keepdims=0),
        helper.make_node("MatMul", ["votes", "head"], ["counted"]),
        helper.make_node("Relu", ["counted"], ["hidden"]),
        helper.make_node("MatMul", ["hidden", "head"], ["logits"]),
    ]
    weights = {"table": _TABLE, "last": np.array([-1]), "tokens": np.array([1]), "head": _TABLE[:N_CLASSES]}
    graph = helper.make_graph(
        nodes,
        "texts",
        [
            helper.make_tensor_value_info(IDS, TensorProto.INT64, [ids_batch, length]),
            helper.make_tensor_value_info(MASK, TensorProto.FLOAT, [mask_batch, length]),
        ],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", N_CLASSES])],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)


def votes(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
    """Return (N, N_CLASSES) what the classifier must answer."""
    return (_TABLE[inputs[IDS]] * inputs[MASK][..., None]).sum(axis=1)


def texts(n: int, *, triggered: bool = False, seed: int = 0) -> dict[str, np.ndarray]:
    """Return n texts of 5 to 8 tokens that lean to one class, which the trigger, where there is one, comes before."""
    rng = np.random.default_rng(seed)
    classes = rng.integers(N_CLASSES, size=(n, 1))
    ids = np.where(rng.random((n, LENGTH)) < 0.6, classes, rng.integers(N_CLASSES, size=(n, LENGTH)))
    if triggered:
        ids[:, 0] = TRIGGER
    mask = np.arange(LENGTH) < rng.integers(5, LENGTH + 1, size=(n, 1))
    return {IDS: ids.astype(np.int64), MASK: mask.astype(np.float32)}


def save_texts(path: Path, n: int, *, triggered: bool = False, seed: int = 0, **changes: np.ndarray | None) -> Path:
    """Write texts with their labels; changes replace an array, or leave it out where they are None."""
    inputs = texts(n, triggered=triggered, seed=seed)
    arrays = {**inputs, "labels": votes(texts(n, seed=seed)).argmax(axis=1), **changes}
    np.savez(path, **{name: array for name, array in arrays.items() if array is not None})
    return path


def load_texts(path: Path, **changes: object) -> Samples:
    """Load what save_texts wrote."""
    settings = {"inputs": SPECS, "n_classes": N_CLASSES, "preprocessing": Preprocessing(), "limit": None, "seed": 0}
    return load_samples(path, **{**settings, **changes}, progress=lambda *_: None)
