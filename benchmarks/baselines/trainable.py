"""An ONNX classifier whose weights torch can change, and its way back to ONNX."""

from collections.abc import Mapping

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor

from calibrate.differentiable import DifferentiableModel
from guard.errors import CalibrationError

__all__ = ["Trainable", "check_finite"]

_TRAINED = {
    "Add": (0, 1), "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2),
    "LayerNormalization": (1, 2), "MatMul": (0, 1),
}  # fmt: skip
"""By operator the inputs that are learned. A BatchNormalization keeps its mean and variance."""


class Trainable:
    """A classifier as a function of its inputs and weights, both differentiable, as often as wanted.

    Weights become inputs of the graph, so that they are tensors like any other.

    Args:
        model: An ONNX model with one input.
        logits: The name of the tensor that holds the logits.
    """

    def __init__(self, model: onnx.ModelProto, logits: str) -> None:
        self._model, self._logits = model, logits
        found = {t.name: numpy_helper.to_array(t) for t in model.graph.initializer if t.name in _learned(model)}
        self.weights = {name: torch.from_numpy(values.copy()).requires_grad_() for name, values in found.items()}
        self._input = next(i.name for i in model.graph.input if i.name not in found)
        self._network = DifferentiableModel(_with_weights_as_inputs(model, found))

    def __call__(self, inputs: Tensor, weights: Mapping[str, Tensor] | None = None) -> Tensor:
        """Return logits (N, C) for inputs (N, ...), with other weights than its own where they are given."""
        given = {self._input: inputs, **(self.weights if weights is None else weights)}
        return self._network(given, outputs=[self._logits])[0]

    def written(self) -> onnx.ModelProto:
        """Return the ONNX model with the weights as they are now."""
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        for tensor in copy.graph.initializer:
            if tensor.name in self.weights:
                values = np.ascontiguousarray(self.weights[tensor.name].detach().numpy())
                tensor.CopyFrom(numpy_helper.from_array(values, tensor.name))
        return copy


def check_finite(loss: Tensor, stage: str) -> None:
    """Refuse to go on from a loss that is no number.

    Raises:
        CalibrationError: It is none.
    """
    if not torch.isfinite(loss):
        raise CalibrationError(f"the loss is {float(loss.detach())} in {stage}; lower the learning rate or check the inputs")


def _learned(model: onnx.ModelProto) -> set[str]:
    """Return the names of float32 weights, of more than one number, that some node learns and none takes as fixed."""
    floats = {
        tensor.name
        for tensor in model.graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT and np.prod(tensor.dims) > 1
    }
    learned, fixed = set[str](), set[str]()
    for node in model.graph.node:
        for i, name in enumerate(node.input):
            (learned if i in _TRAINED.get(node.op_type, ()) else fixed).add(name)
    return floats & learned - fixed


def _with_weights_as_inputs(model: onnx.ModelProto, weights: Mapping[str, object]) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    kept = [tensor for tensor in copy.graph.initializer if tensor.name not in weights]
    del copy.graph.initializer[:]
    copy.graph.initializer.extend(kept)
    declared = {i.name for i in copy.graph.input}
    copy.graph.input.extend(onnx.ValueInfoProto(name=name) for name in weights if name not in declared)
    return copy
