"""Read an ONNX classifier: its input and output, where its logits are, and the activations that can be bounded."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError, EncodeError
from onnx import inliner
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from calibrate.activations import Activation, find_activations
from calibrate.edit import check_unbounded
from calibrate.sites import Site
from guard.errors import CalibrationError, InputError, ModelError
from guard.model import OrtModel
from guard.types import TensorSpec

__all__ = ["OLDEST_OPSET", "Classifier", "expose_logits", "find_sites", "read_classifier", "serialize", "with_outputs"]

OLDEST_OPSET = 11

_FLOATS = ("float16", "float32", "float64")
_MAX_BYTES = 2**31 - 1  # of one protobuf message


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """An ONNX classifier that can be guarded.

    Args:
        name: The model file's name without its ending.
        source: The model file's bytes.
        has_external_data: Whether the file keeps weights in files beside it.
        model: The parsed model, external data loaded.
        inputs: Its inputs (N, ...), one or more.
        output: Its one output (N, C).
        logits: The tensor (N, C) before a trailing Softmax; else the output itself.
    """

    name: str
    source: bytes
    has_external_data: bool
    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    logits: str

    @property
    def n_classes(self) -> int:
        """Return C."""
        return int(self.output.shape[1] or 0)

    @property
    def ends_in_softmax(self) -> bool:
        """Whether a trailing Softmax was recognised."""
        return self.logits != self.output.name


def read_classifier(path: str | Path) -> Classifier:
    """Read a classifier and refuse what cannot be guarded.

    Raises:
        InputError: No such file, not ONNX, truncated, too old, or has not one output (N, C) of floats.
        CalibrationError: The model carries bounds already.
    """
    file = Path(path)
    if not file.is_file():
        raise InputError(f"{file} is no file; give the path of an ONNX model")
    source, model, has_external_data = _parse(file)
    _check_opset(model, file)
    check_unbounded(model)
    try:
        session = OrtModel(serialize(model), label=file.name)
    except ModelError as error:
        raise InputError(f"{file}: {error}") from error
    if len(session.outputs) != 1:
        names = ", ".join(o.name for o in session.outputs)
        raise InputError(f"{file} has {len(session.outputs)} outputs ({names}); a guarded classifier has one, (N, C)")
    (output,) = session.outputs
    if len(output.shape) != 2 or output.dtype not in _FLOATS or (output.shape[1] or 0) < 2:
        raise InputError(f"{file} has the output {output}; a classifier's output is floats (N, C) with C of 2 or more")
    return Classifier(
        name=file.stem.encode("utf-8", "replace").decode(),  # a file's name may be no text
        source=source,
        has_external_data=has_external_data,
        model=model,
        inputs=session.inputs,
        output=TensorSpec(name=output.name, dtype=output.dtype, shape=(None, output.shape[1])),
        logits=_before_softmax(model, output.name),
    )


def find_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    """Return every output of an activation function that depends on the input, in the order of the graph.

    Raises:
        CalibrationError: There is none: nothing can be bounded.
    """
    output_names = {o.name for o in model.graph.output}
    found = [a for a in find_activations(model.graph) if a.tensor not in output_names]
    specs = _specs(model, [a.tensor for a in found])
    sites = tuple(_site(a, spec) for a, spec in zip(found, specs, strict=True) if _is_boundable(spec))
    if not sites:
        raise CalibrationError(
            "the model has no activation to bound: no Relu, Clip, Gelu or other activation function lies between its"
            " input and its output"
        )
    return sites


def expose_logits(classifier: Classifier) -> onnx.ModelProto:
    """Return a copy of the classifier's model that gives its logits too, as an output of declared type."""
    exposed = with_outputs(classifier.model, [classifier.logits])
    if classifier.ends_in_softmax:
        (spec,) = _specs(classifier.model, [classifier.logits])
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        output = exposed.graph.output[0].type.tensor_type.shape
        exposed.graph.output[-1].type.tensor_type.elem_type = element
        exposed.graph.output[-1].type.tensor_type.shape.CopyFrom(output)
    return exposed


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


def _parse(file: Path) -> tuple[bytes, onnx.ModelProto, bool]:
    """Return the file's bytes, the checked model with all its weights, and whether some were kept beside it."""
    try:
        source = file.read_bytes()
        model = onnx.load_model_from_string(source)
        has_external_data = any(map(uses_external_data, _tensors(model.graph)))
        load_external_data_for_model(model, str(file.parent))
        onnx.checker.check_model(model)
        if model.functions:  # activations inside them are sites too
            model = inliner.inline_local_functions(model)
    except (DecodeError, onnx.checker.ValidationError, ValueError, OSError) as error:
        reason = (str(error).strip().splitlines() or [""])[0][:200]
        raise InputError(f"{file} is no valid ONNX model, or is truncated: {reason}") from error
    return source, model, has_external_data


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    yield from graph.initializer
    for attribute in (a for node in graph.node for a in node.attribute):
        yield from (attribute.t, *attribute.tensors)
        for inner in (attribute.g, *attribute.graphs):
            yield from _tensors(inner)


def _check_opset(model: onnx.ModelProto, file: Path) -> None:
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < OLDEST_OPSET:
        raise InputError(f"{file} uses opset {opset}; opset {OLDEST_OPSET} or newer is needed: export it again")


def _before_softmax(model: onnx.ModelProto, output: str) -> str:
    producers = {name: node for node in model.graph.node for name in node.output}
    tensor = output
    while (node := producers.get(tensor)) is not None and node.op_type in ("Identity", "Cast"):
        tensor = node.input[0]
    if node is None or node.op_type != "Softmax":
        return output
    logits = node.input[0]
    (spec,) = _specs(model, [logits])
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    return logits if len(spec.shape) == 2 and axis in (1, -1) else output


def _specs(model: onnx.ModelProto, tensors: Sequence[str]) -> list[TensorSpec]:
    """Return the tensors' types and shapes, axis 0 as N.

    Where a shape is computed in the graph its rank may be unknown as long as N is free: those are asked for N = 1.
    """
    specs = _told(model, tensors)
    unknown = [spec.name for spec in specs if not spec.shape]
    known = {spec.name: spec for spec in _told(_with_one_row(model), unknown)} if unknown else {}
    found = (known.get(spec.name, spec) for spec in specs)
    return [replace(spec, shape=(None, *spec.shape[1:])) if spec.shape else spec for spec in found]


def _told(model: onnx.ModelProto, tensors: Sequence[str]) -> list[TensorSpec]:
    """Return the tensors' types and shapes as onnxruntime tells them; an unknown rank reads as no axes."""
    probe = OrtModel(serialize(with_outputs(model, tensors)), label="probed")
    by_name = {o.name: o for o in probe.outputs}
    return [by_name[t] for t in tensors]


def _with_one_row(model: onnx.ModelProto) -> onnx.ModelProto:
    """Return a copy of the model that takes one row, so that arithmetic on shapes is arithmetic on constants."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    weights = {tensor.name for tensor in copy.graph.initializer}
    for value in copy.graph.input:
        free = [] if value.name in weights else [n for n in value.type.tensor_type.shape.dim[:1] if not n.dim_value]
        for n in free:
            n.dim_value = 1
    for value in copy.graph.output:
        value.type.tensor_type.ClearField("shape")
    return copy


def _is_boundable(spec: TensorSpec) -> bool:
    """Say whether these are floats with at least one axis beside N."""
    return spec.dtype in _FLOATS and len(spec.shape) > 1


def _site(activation: Activation, spec: TensorSpec) -> Site:
    axis = activation.channel_axis % len(spec.shape) if len(spec.shape) > 2 else 1
    return Site(
        tensor=activation.tensor,
        function=activation.function,
        shape=(None, *spec.shape[1:]),
        channel_axis=axis,
        dtype=spec.dtype,
    )
