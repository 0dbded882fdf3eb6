"""Read an ONNX classifier: its input and output, where its logits are, and the activations that can be bounded."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import inliner
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from calibrate.activations import Activation, find_activations
from calibrate.edit import check_unbounded
from calibrate.outputs import choose_output, numeric_outputs, with_only_outputs
from calibrate.probing import serialize, specs_of, with_outputs
from calibrate.sites import Site
from guard.errors import CalibrationError, InputError, ModelError
from guard.model import OrtModel
from guard.types import TensorSpec

__all__ = [
    "OLDEST_OPSET",
    "Classifier",
    "expose_logits",
    "find_sites",
    "read_classifier",
    "serialize",
    "survey_sites",
    "with_outputs",
]

OLDEST_OPSET = 11

_FLOATS = ("float16", "float32", "float64")


@dataclass(frozen=True, slots=True, kw_only=True)
class Classifier:
    """An ONNX classifier that can be guarded.

    Args:
        name: The model file's name without its ending.
        source: The model file's bytes.
        has_external_data: Whether the file keeps weights in files beside it.
        model: The parsed model, external data loaded, without the outputs that are dropped.
        inputs: Its inputs (N, ...), one or more.
        output: Its one output (N, C).
        logits: The tensor (N, C) before a trailing Softmax; else the output itself.
        dropped: Outputs of the file that are no classes, such as scikit-learn's label; nothing guarded gives them.
    """

    name: str
    source: bytes
    has_external_data: bool
    model: onnx.ModelProto
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    logits: str
    dropped: tuple[str, ...] = ()

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
    whole = {o.name for o in model.graph.output}
    model = with_only_outputs(model, numeric_outputs(model.graph, label=str(file)))
    try:
        session = OrtModel(serialize(model), label=file.name)
    except ModelError as error:
        raise InputError(f"{file}: {error}") from error
    output = choose_output(session.outputs, label=str(file))
    model = with_only_outputs(model, [output.name])
    return Classifier(
        name=file.stem.encode("utf-8", "replace").decode(),  # a file's name may be no text
        source=source,
        has_external_data=has_external_data,
        model=model,
        inputs=session.inputs,
        output=TensorSpec(name=output.name, dtype=output.dtype, shape=(None, output.shape[1])),
        logits=_before_softmax(model, output.name),
        dropped=tuple(sorted(whole - {output.name})),
    )


def find_sites(model: onnx.ModelProto) -> tuple[Site, ...]:
    """Return every output of an activation function that depends on the input, in the order of the graph.

    Raises:
        CalibrationError: There is none: nothing can be bounded.
    """
    return survey_sites(model)[0]


def survey_sites(model: onnx.ModelProto) -> tuple[tuple[Site, ...], tuple[str, ...]]:
    """Return the sites (see find_sites), and the activations that are none because nobody can tell their rank.

    Raises:
        CalibrationError: There is no site.
    """
    output_names = {o.name for o in model.graph.output}
    found = [a for a in find_activations(model.graph) if a.tensor not in output_names]
    specs = specs_of(model, [a.tensor for a in found])
    sites = tuple(_site(a, spec) for a, spec in zip(found, specs, strict=True) if _is_boundable(spec))
    unranked = tuple(spec.name for spec in specs if spec.dtype in _FLOATS and not spec.shape)
    if not sites:
        reason = f"; the rank of {', '.join(unranked)} is unknown" if unranked else ""
        raise CalibrationError(
            "the model has no activation to bound: no Relu, Clip, Gelu or other activation function lies between its"
            f" input and its output{reason}"
        )
    return sites, unranked


def expose_logits(classifier: Classifier) -> onnx.ModelProto:
    """Return a copy of the classifier's model that gives its logits too, as an output of declared type."""
    exposed = with_outputs(classifier.model, [classifier.logits])
    if classifier.ends_in_softmax:
        (spec,) = specs_of(classifier.model, [classifier.logits])
        element = onnx.helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        output = exposed.graph.output[0].type.tensor_type.shape
        exposed.graph.output[-1].type.tensor_type.elem_type = element
        exposed.graph.output[-1].type.tensor_type.shape.CopyFrom(output)
    return exposed


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
    (spec,) = specs_of(model, [logits])
    axis = next((a.i for a in node.attribute if a.name == "axis"), -1)
    return logits if len(spec.shape) == 2 and axis in (1, -1) else output


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
