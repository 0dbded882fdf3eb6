"""An ONNX classifier whose weights torch can change, and its way back to ONNX.

A BatchNorm that was folded into its convolution is put back: convolutions without one train badly at the rates that the
papers give. What folding forgot is chosen: filters of length 1, and mean and variance of the clean inputs.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from onnx import numpy_helper
from torch import Tensor

from calibrate.differentiable import Change, DifferentiableModel
from guard.errors import CalibrationError
from guard.types import FloatArray

__all__ = ["Trainable", "check_finite"]

_TRAINED = {
    "Add": (0, 1), "BatchNormalization": (1, 2), "Conv": (1, 2), "ConvTranspose": (1, 2), "Gemm": (1, 2),
    "LayerNormalization": (1, 2), "MatMul": (0, 1),
}  # fmt: skip
"""By operator the inputs that are learned. A BatchNormalization in the graph keeps its mean and variance."""

_EPSILON = 1e-5
_MOMENTUM = 0.1
_ROWS = 50  # at a time, over which statistics are taken


@dataclass(frozen=True, slots=True, kw_only=True)
class _Norm:
    """A BatchNorm after a convolution without one; mean and variance (K,) follow the batches of training."""

    convolution: onnx.NodeProto
    mean: Tensor
    variance: Tensor

    @property
    def names(self) -> tuple[str, str, str]:
        """Return the names of the filters, of the scale and of the shift."""
        output = self.convolution.output[0]
        return self.convolution.input[1], f"{output}/scale", f"{output}/shift"

    def apply(self, values: Tensor, weights: Mapping[str, Tensor], *, training: bool) -> Tensor:
        _, scale, shift = (weights[name] for name in self.names)
        return F.batch_norm(
            values, self.mean, self.variance, scale, shift, training=training, momentum=_MOMENTUM, eps=_EPSILON
        )

    def folded(self, weights: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return the convolution's weight and bias with the BatchNorm in them."""
        filters, scale, shift = (weights[name].detach() for name in self.names)
        factor = scale / (self.variance + _EPSILON).sqrt()
        return filters * _per_filter(factor, filters), shift - factor * self.mean


class Trainable:
    """A classifier as a function of its inputs and weights, differentiable in both as often as wanted.

    Weights become inputs of the graph, so that they are tensors like any other.

    Args:
        model: An ONNX model with one input.
        logits: The name of the tensor that holds the logits.
        clean: Model-ready clean inputs (N, ...), for the statistics of the BatchNorms that are put back.
    """

    def __init__(self, model: onnx.ModelProto, logits: str, clean: FloatArray) -> None:
        self._model, self._logits = model, logits
        stored = {tensor.name: tensor for tensor in model.graph.initializer}
        found = {name: _tensor(stored[name]) for name in sorted(_learned(model))}
        self._input = next(i.name for i in model.graph.input if i.name not in stored)
        self._network = DifferentiableModel(_with_weights_as_inputs(model, found))
        convolutions = [node for node in _bare_convolutions(model) if set(node.input[1:]) <= found.keys()]
        self._fixed = {node.input[2]: torch.zeros_like(found[node.input[2]]) for node in convolutions}
        norms, unfolded = self._unfold(convolutions, found, torch.from_numpy(clean))
        self._norms = norms
        kept = {name: value for name, value in found.items() if name not in self._fixed}
        self.weights = {name: value.requires_grad_() for name, value in {**kept, **unfolded}.items()}

    def __call__(
        self, inputs: Tensor, weights: Mapping[str, Tensor] | None = None, *, training: bool = False
    ) -> Tensor:
        """Return logits (N, C) for inputs (N, ...), with other weights than its own where they are given.

        In training, BatchNorms that were put back normalise by the batch and remember its statistics.
        """
        chosen = self.weights if weights is None else weights
        graph = {name: value for name, value in chosen.items() if name in self._network.input_names}
        at = {n.convolution.output[0]: _change(n, chosen, training=training) for n in self._norms}
        given = {self._input: inputs, **self._fixed, **graph}
        return self._network(given, outputs=[self._logits], at=at)[0]

    def written(self) -> onnx.ModelProto:
        """Return the ONNX model with the weights as they are now, BatchNorms folded as they were."""
        values = {name: value.detach() for name, value in self.weights.items()}
        for norm in self._norms:
            weight, bias = norm.folded(values)
            values |= {norm.convolution.input[1]: weight, norm.convolution.input[2]: bias}
        copy = onnx.ModelProto()
        copy.CopyFrom(self._model)
        for tensor in copy.graph.initializer:
            if tensor.name in values:
                array = np.ascontiguousarray(values[tensor.name].numpy())
                tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
        return copy

    @torch.no_grad()
    def _unfold(
        self, convolutions: Sequence[onnx.NodeProto], found: dict[str, Tensor], clean: Tensor
    ) -> tuple[list[_Norm], dict[str, Tensor]]:
        """Split weights and biases into filters, scales and shifts, so that nothing changes for the moment."""
        moments = self._moments([node.output[0] for node in convolutions], found, clean)
        norms, weights = [], {}
        for node, (mean, variance) in zip(convolutions, moments, strict=True):
            weight, bias = found[node.input[1]], found[node.input[2]]
            length = weight.flatten(1).norm(dim=1).clamp_min(torch.finfo(weight.dtype).tiny)
            norm = _Norm(convolution=node, mean=(mean - bias) / length, variance=variance / length**2)
            filters, scale, shift = norm.names
            weights[filters] = weight / _per_filter(length, weight)
            weights[scale] = length * (norm.variance + _EPSILON).sqrt()
            weights[shift] = mean.clone()
            norms.append(norm)
        return norms, weights

    def _moments(
        self, tensors: Sequence[str], weights: Mapping[str, Tensor], clean: Tensor
    ) -> list[tuple[Tensor, Tensor]]:
        """Return mean and variance (K,) of tensors (N, K, ...) over the clean inputs."""
        sums = [(torch.zeros(()), torch.zeros(())) for _ in tensors]
        for rows in torch.split(clean, _ROWS) if tensors else ():
            values = self._network({self._input: rows, **weights}, outputs=tensors)
            parts = [value.double().transpose(0, 1).flatten(1) for value in values]
            share = len(rows) / len(clean)
            sums = [
                (first + share * x.mean(dim=1), second + share * x.square().mean(dim=1))
                for (first, second), x in zip(sums, parts, strict=True)
            ]
        return [(first.float(), (second - first**2).clamp_min(0).float()) for first, second in sums]


def check_finite(loss: Tensor, stage: str) -> None:
    """Refuse to go on from a loss that is no number.

    Raises:
        CalibrationError: It is none.
    """
    if not torch.isfinite(loss):
        raise CalibrationError(
            f"the loss is {float(loss.detach())} in {stage}; lower the learning rate or check the inputs"
        )


def _change(norm: _Norm, weights: Mapping[str, Tensor], *, training: bool) -> Change:
    return lambda values: norm.apply(values, weights, training=training)


def _tensor(stored: onnx.TensorProto) -> Tensor:
    return torch.from_numpy(numpy_helper.to_array(stored).copy())


def _per_filter(values: Tensor, filters: Tensor) -> Tensor:
    return values.reshape(-1, *[1] * (filters.dim() - 1))


def _bare_convolutions(model: onnx.ModelProto) -> list[onnx.NodeProto]:
    """Return convolutions with a bias that no BatchNormalization follows, and that share no weights."""
    normalised = {node.input[0] for node in model.graph.node if node.op_type == "BatchNormalization"}
    used = [name for node in model.graph.node for name in node.input]
    return [
        node
        for node in model.graph.node
        if node.op_type == "Conv" and node.output[0] not in normalised and len(node.input) == 3
        and all(used.count(name) == 1 for name in node.input[1:])
    ]  # fmt: skip


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
