"""Small ONNX graphs from nodes written out by hand, torch's exports of the model families, and running either."""

from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper
from torch_models import Exporter, build, example_of, export

from calibrate.forward import forward

__all__ = ["EXPORTS", "exported", "model_of", "node", "optimised_by_onnxruntime", "values_of"]

EXPORTS: Sequence[tuple[Exporter, int]] = (
    ("torchscript", 11),
    ("torchscript", 17),
    ("torchscript", 20),
    ("dynamo", 18),
)

node = helper.make_node


def model_of(
    *nodes: onnx.NodeProto,
    x: Sequence[int | str] = ("N", 3),
    y: Sequence[int | str] | None = ("N", 3),
    weights: Mapping[str, object] = {},
    opset: int = 17,
    dtype: int = TensorProto.FLOAT,
    ir_version: int = 8,
    domains: Sequence[str] = (),
) -> onnx.ModelProto:
    """Build a graph from x to y; floats among the weights get the graph's element type."""
    floats = helper.tensor_dtype_to_np_dtype(dtype)
    arrays = {name: np.asarray(value) for name, value in weights.items()}
    initializers = [
        numpy_helper.from_array(a.astype(floats) if a.dtype.kind == "f" else a, name) for name, a in arrays.items()
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("x", dtype, x)],
        [helper.make_tensor_value_info("y", dtype, y)],
        initializers,
    )
    opsets = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=ir_version)


@lru_cache
def exported(family: str, exporter: Exporter, opset: int) -> onnx.ModelProto:
    """Export a family once; whoever gets it must leave it as it is."""
    return export(build(family), example_of(), exporter=exporter, opset=opset)


def optimised_by_onnxruntime(model: onnx.ModelProto, folder: Path) -> onnx.ModelProto:
    """Return the graph that onnxruntime makes of it, with fused layers; its file goes into the folder."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return onnx.load(folder / "optimised.onnx")


def values_of(model: onnx.ModelProto, tensor: str, inputs: np.ndarray) -> np.ndarray:
    """Return what a tensor of the graph holds for these inputs."""
    return np.concatenate([found[tensor] for _, found in forward(model, [tensor], inputs)])
