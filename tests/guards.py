"""Guards round tiny models, of ONNX or of numpy, for tests of what a guard says."""

from dataclasses import replace

import numpy as np
from bundles import bounded_model, clean_scores, manifest, original_model
from onnx import TensorProto, helper

from guard import Guard
from guard.bundle import Bundle
from guard.types import TensorSpec

__all__ = ["NumpyModel", "always", "guard_of", "numpy_guard", "soft_guard", "soft_model"]


def guard_of(original=None, bounded=None, **changes):
    """Return a guard round ONNX models; changes are the manifest's."""
    models = {"original": original or original_model(), "bounded": bounded or bounded_model()}
    bundle = Bundle(manifest=replace(manifest(), **changes), clean_scores=clean_scores(), **models)
    return Guard.from_bundle(bundle, threads=1)


class NumpyModel:
    """A model that is a function of its inputs (N, 3), the same for every output asked for."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=(None, 3)),)

    def __init__(self, function):
        self.function = function

    def run(self, inputs, names):
        return tuple(np.asarray(self.function(inputs)) for _ in names)


def numpy_guard(original, bounded, **changes):
    bundle = Bundle(manifest=replace(manifest(), **changes), original=b"", bounded=b"", clean_scores=clean_scores())
    return Guard(bundle, original=NumpyModel(original), bounded=NumpyModel(bounded))


def always(*rows, dtype=np.float32):
    return lambda inputs: np.array(rows, dtype=dtype)[: len(inputs)]


def soft_model(cap, *, name="logits"):
    """Return y = softmax(min(relu(x), cap)) as ONNX, with the logits beside it."""
    infos = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3]) for n in ("x", "y", name)]
    nodes = [
        helper.make_node("Relu", ["x"], ["relu"]),
        helper.make_node("Min", ["relu", "cap"], [name]),
        helper.make_node("Softmax", [name], ["y"], axis=1),
    ]
    constant = helper.make_tensor("cap", TensorProto.FLOAT, [], [cap])
    graph = helper.make_graph(nodes, "soft", infos[:1], infos[1:], initializer=[constant])
    return helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8
    ).SerializeToString()  # fmt: skip


def soft_guard(*, logits, cap=4.0):
    return guard_of(soft_model(np.inf), soft_model(cap), output_kind="probabilities", logits=logits)
