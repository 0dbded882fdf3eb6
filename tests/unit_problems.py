"""Problems small enough to know the answer of: one activation, a mean over space and a linear head."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from calibrate.sites import BoundsProblem, Site

__all__ = ["problem_of", "two_classes", "with_fixed_batch"]


def with_fixed_batch(problem: BoundsProblem, n: int) -> BoundsProblem:
    """Return the problem with its model as exported for n inputs: n is written into a Reshape."""
    model = onnx.ModelProto()
    model.CopyFrom(problem.model)
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = n
    model.graph.output[0].type.tensor_type.shape.dim[0].dim_value = n
    model.graph.initializer.append(numpy_helper.from_array(np.array([n, -1]), "flat"))
    model.graph.node.insert(2, helper.make_node("Reshape", ["pooled", "flat"], ["rows"]))
    model.graph.node[3].input[0] = "rows"
    return replace(problem, model=model)


def _classifier(shape: Sequence[int], head: np.ndarray) -> onnx.ModelProto:
    """x (N, *shape) -> a = relu(x) -> mean over space -> logits = mean @ head."""
    nodes = [
        helper.make_node("Relu", ["x"], ["a"]),
        helper.make_node("ReduceMean", ["a", "space"], ["pooled"], keepdims=0, noop_with_empty_axes=1),
        helper.make_node("MatMul", ["pooled", "head"], ["logits"]),
    ]
    space = np.arange(2, 1 + len(shape), dtype=np.int64)
    weights = [numpy_helper.from_array(w, n) for w, n in ((space, "space"), (head.astype(np.float32), "head"))]
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", *shape])
    y = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", head.shape[1]])
    graph = helper.make_graph(nodes, "classifier", [x], [y], weights)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)


def problem_of(inputs: np.ndarray, labels: np.ndarray, head: np.ndarray, **changes) -> BoundsProblem:
    shape = inputs.shape[1:]
    fields = {
        "model": _classifier(shape, head),
        "logits": "logits",
        "n_classes": head.shape[1],
        "sites": (Site(tensor="a", function="Relu", shape=(None, *shape), channel_axis=1),),
        "inputs": inputs.astype(np.float32),
        "labels": labels.astype(np.int64),
        "max_accuracy_drop": 0.03,
        "seed": 0,
        "progress": lambda *_: None,
    }
    return BoundsProblem(**{**fields, **changes})


def two_classes(n: int = 80, shape: Sequence[int] = (2, 3, 3), **changes) -> BoundsProblem:
    """Two noisy classes, each lighting one of the first two channels."""
    labels = np.arange(n) % 2
    rng = np.random.default_rng(3)
    inputs = rng.normal(0.5, 1.0, size=(n, *shape))
    inputs[np.arange(n), labels] += 1
    return problem_of(inputs, labels, np.eye(shape[0])[:, :2], **changes)
