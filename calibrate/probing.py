"""Ask onnxruntime what tensors of a graph are."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import onnx
from google.protobuf.message import EncodeError

from guard.errors import InputError, ModelError
from guard.model import OrtModel
from guard.types import TensorSpec

__all__ = ["serialize", "specs_of", "with_outputs"]

_FREE_SIZE = 32  # tried along an axis of free size, as of images
_MAX_BYTES = 2**31 - 1  # of one protobuf message


def specs_of(model: onnx.ModelProto, tensors: Sequence[str]) -> list[TensorSpec]:
    """Return the tensors' types and shapes, axis 0 as N; no axes where nobody can tell the rank.

    Where onnxruntime cannot infer a rank, because shapes are computed in the graph or an operator tells none, one row
    of zeros is run to see it.
    """
    probe = OrtModel(serialize(with_outputs(model, tensors)), label="probed")
    by_name = {o.name: o for o in probe.outputs}
    specs = [by_name[t] for t in tensors]
    seen = _seen(probe, [spec.name for spec in specs if not spec.shape])
    shapes = (seen.get(spec.name, spec.shape) for spec in specs)
    return [replace(spec, shape=(None, *shape[1:]) if shape else ()) for spec, shape in zip(specs, shapes, strict=True)]


def _seen(probe: OrtModel, tensors: Sequence[str]) -> Mapping[str, tuple[int | None, ...]]:
    """Return the shapes that one row of zeros has; their sizes are told only where the inputs' are fixed."""
    free = any(None in spec.shape[1:] for spec in probe.inputs)
    row = {s.name: np.zeros((1, *(n or _FREE_SIZE for n in s.shape[1:])), s.dtype) for s in probe.inputs}
    try:
        arrays = probe.run(row, tensors) if tensors else ()
    except (InputError, ModelError):
        return {}
    return {t: (None,) * a.ndim if free else a.shape for t, a in zip(tensors, arrays, strict=True)}


def with_outputs(model: onnx.ModelProto, tensors: Sequence[str]) -> onnx.ModelProto:
    """Return a copy of the model that also gives these tensors."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    present = {o.name for o in copy.graph.output}
    # onnxruntime infers the type of an output that declares none.
    copy.graph.output.extend(onnx.ValueInfoProto(name=t) for t in tensors if t not in present)
    return copy


def serialize(model: onnx.ModelProto) -> bytes:
    """Return the model's bytes, the same for the same model.

    Raises:
        InputError: The model is larger than one protobuf message may be.
    """
    try:
        content = bytes(model.SerializeToString(deterministic=True))
    except EncodeError as error:
        raise InputError(f"the model does not fit into one file: it has more than {_MAX_BYTES} bytes") from error
    if len(content) > _MAX_BYTES:
        raise InputError(f"the model has {len(content)} bytes with its weights; more than {_MAX_BYTES} do not fit")
    return content
