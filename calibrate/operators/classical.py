"""What converters of classical models emit around linear layers: the domain ai.onnx.ml."""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from calibrate.operators.node import Node, Operator

__all__ = ["OPERATORS", "TRANSFORMS"]

TRANSFORMS = ("LOGISTIC", "NONE", "SOFTMAX")
"""What a linear classifier may make of its scores."""

_NORMS: Mapping[str, Callable[[Tensor], Tensor]] = {
    "MAX": lambda x: x.amax(-1, keepdim=True),  # onnxruntime: the greatest value, with its sign
    "L1": lambda x: torch.linalg.vector_norm(x, 1, -1, keepdim=True),
    "L2": lambda x: torch.linalg.vector_norm(x, 2, -1, keepdim=True),
}


def _row(node: Node, name: str, x: Tensor) -> Tensor:
    return torch.tensor(node.attributes[name], dtype=torch.float32, device=x.device)


def _scaler(node: Node, x: Tensor) -> Tensor:
    return (x.float() - _row(node, "offset", x)) * _row(node, "scale", x)


def _normalizer(node: Node, x: Tensor) -> Tensor:
    norm = _NORMS[node.text("norm", "MAX")](x.float())
    return x.float() / torch.where(norm == 0, 1, norm)


def _linear_classifier(node: Node, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the labels, as places among the classes where they are texts, and the scores."""
    weight = _row(node, "coefficients", x).reshape(-1, x.shape[1])
    scores = x.float() @ weight.T + _row(node, "intercepts", x)
    labels = scores.argmax(1)
    if "classlabels_ints" in node.attributes:
        labels = torch.tensor(node.attributes["classlabels_ints"], device=x.device)[labels]
    match node.text("post_transform", "NONE"):
        case "SOFTMAX":
            scores = scores.softmax(1)
        case "LOGISTIC":
            scores = scores.sigmoid()
    return labels, scores


OPERATORS: Mapping[str, Operator] = {
    "LinearClassifier": _linear_classifier,
    "Normalizer": _normalizer,
    "Scaler": _scaler,
}
