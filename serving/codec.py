"""Protobuf to numpy and back, and nothing else. Strict: whatever a request says twice must agree."""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any, NamedTuple

from numpy.typing import NDArray

from guard.errors import InputError
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb
from serving.datatypes import BYTES, DATATYPES, Datatype, datatype_of, element_count, from_raw, from_typed, to_raw
from serving.statistics import Statistics, Tally

__all__ = [
    "Stated",
    "add_outputs",
    "decode_input",
    "decode_inputs",
    "model_config",
    "model_metadata",
    "model_statistics",
    "requested_outputs",
    "stated_rows",
]

Array = NDArray[Any]
Metadata = pb.ModelMetadataResponse.TensorMetadata

_MAX_STATED = 32
"""Inputs, and axes of each, up to which a request's statement is looked at before its turn."""

_UNSUPPORTED = ("shared_memory_region", "classification")
"""Parameters of a tensor that change what it means, so that ignoring them would answer another question."""


class Stated(NamedTuple):
    """What a request states about its rows: how many, and what else has to be equal for joining them with others'."""

    n_rows: int
    layout: Hashable


def stated_rows(request: pb.ModelInferRequest) -> Stated:
    """Return what a request states of its rows, in time that does not depend on it; nothing of it is checked."""
    if not 0 < len(request.inputs) <= _MAX_STATED:
        return Stated(0, None)
    shapes = [tensor.shape for tensor in request.inputs]
    if not all(0 < len(shape) <= _MAX_STATED for shape in shapes):
        return Stated(0, None)
    return Stated(max(shape[0] for shape in shapes), tuple(tuple(shape[1:]) for shape in shapes))


def decode_inputs(request: pb.ModelInferRequest, expected: Sequence[TensorSpec]) -> dict[str, Array]:
    """Return a request's inputs by name.

    Args:
        request: As it came over the wire.
        expected: The model's inputs; names and datatypes must match exactly, shapes are left to the guard.

    Raises:
        InputError: An input is missing, doubled, unknown or of another datatype, or its data does not fit.
    """
    _check_names(request.inputs, [spec.name for spec in expected])
    raw = _raw_contents(request)
    datatypes = {spec.name: datatype_of(spec.dtype).name for spec in expected}
    for tensor in request.inputs:
        if tensor.datatype in DATATYPES and tensor.datatype != datatypes[tensor.name]:
            wanted = datatypes[tensor.name]
            raise InputError(f"input {tensor.name} has datatype {tensor.datatype}; the model takes {wanted}")
    return {tensor.name: decode_input(tensor, data) for tensor, data in zip(request.inputs, raw, strict=True)}


def decode_input(tensor: pb.ModelInferRequest.InferInputTensor, raw: bytes | None) -> Array:
    """Return one input's array.

    Args:
        tensor: What the request says of it, with typed contents if raw is None.
        raw: Its raw bytes, if the request sends raw.

    Raises:
        InputError: No data, both raw and typed, an unknown datatype, or data that does not fit the shape.
    """
    datatype = _datatype(tensor)
    _check_parameters(f"input {tensor.name}", tensor.parameters)
    filled = [field.name for field, _ in tensor.contents.ListFields()]
    if raw is None:
        return from_typed(tensor.name, datatype, tensor.shape, _typed_values(tensor, datatype, filled))
    if filled:
        raise InputError(f"input {tensor.name} has raw data and {filled[0]} too; send one of them")
    return from_raw(tensor.name, datatype, tensor.shape, raw)


def requested_outputs(request: pb.ModelInferRequest, available: Sequence[str]) -> tuple[str, ...]:
    """Return the names of the outputs to answer with: those asked for in their order, or all.

    Raises:
        InputError: An output is unknown, asked for twice, or asked for in a form that is not offered.
    """
    names = tuple(output.name for output in request.outputs)
    if unknown := [name for name in names if name not in available]:
        raise InputError(f"output {unknown[0]!r} was asked for; the model gives {', '.join(available)}")
    if len(set(names)) != len(names):
        raise InputError(f"an output was asked for twice among {', '.join(names)}; ask once")
    for output in request.outputs:
        _check_parameters(f"output {output.name}", output.parameters)
    return names or tuple(available)


def add_outputs(response: pb.ModelInferResponse, tensors: Mapping[str, Array]) -> None:
    """Append tensors to a response, always as raw bytes."""
    for name, array in tensors.items():
        response.outputs.add(name=name, datatype=datatype_of(array.dtype).name, shape=array.shape)
        response.raw_output_contents.append(to_raw(array))


def model_metadata(
    name: str, *, versions: Iterable[str], platform: str, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> pb.ModelMetadataResponse:
    """Return a model's metadata; a free axis is -1."""
    return pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=platform,
        inputs=[_tensor_metadata(spec) for spec in inputs],
        outputs=[_tensor_metadata(spec) for spec in outputs],
    )


def model_config(
    name: str, *, platform: str, max_rows: int, inputs: Iterable[TensorSpec], outputs: Iterable[TensorSpec]
) -> pb.ModelConfig:
    """Return a model's configuration in Triton's terms: with max_batch_size set, dims leave out axis 0."""
    return pb.ModelConfig(
        name=name,
        platform=platform,
        backend=platform.split("_", maxsplit=1)[0],
        max_batch_size=max_rows,
        input=[pb.ModelInput(name=s.name, data_type=_config_type(s), dims=_shape(s)[1:]) for s in inputs],
        output=[pb.ModelOutput(name=s.name, data_type=_config_type(s), dims=_shape(s)[1:]) for s in outputs],
    )


def model_statistics(name: str, *, version: str, statistics: Statistics) -> pb.ModelStatistics:
    """Return what was counted of one version of a model."""
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    tallies = {part: _duration(getattr(statistics, part)) for part in parts}
    return pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.n_rows,
        execution_count=statistics.n_runs,
        inference_stats=pb.InferStatistics(**tallies),
    )


def _duration(tally: Tally) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=tally.count, ns=tally.ns)


def _check_names(inputs: Iterable[pb.ModelInferRequest.InferInputTensor], expected: list[str]) -> None:
    names = [tensor.name for tensor in inputs]
    if unknown := [name for name in names if name not in expected]:
        raise InputError(f"input {unknown[0]!r} is unknown; the model takes {', '.join(expected)}")
    if len(set(names)) != len(names):
        raise InputError(f"an input comes twice among {', '.join(names)}; send each once")
    if missing := [name for name in expected if name not in names]:
        raise InputError(f"input {missing[0]!r} is missing; the model takes {', '.join(expected)}")


def _raw_contents(request: pb.ModelInferRequest) -> Sequence[bytes | None]:
    if not request.raw_input_contents:
        return [None] * len(request.inputs)
    if len(request.raw_input_contents) != len(request.inputs):
        raise InputError(
            f"raw_input_contents has {len(request.raw_input_contents)} entries for {len(request.inputs)} inputs;"
            " send one per input"
        )
    return request.raw_input_contents


def _datatype(tensor: pb.ModelInferRequest.InferInputTensor) -> Datatype:
    if tensor.datatype not in DATATYPES:
        known = ", ".join(DATATYPES)
        raise InputError(f"input {tensor.name} has datatype {tensor.datatype!r}; the protocol has {known}")
    return DATATYPES[tensor.datatype]


def _check_parameters(what: str, parameters: Mapping[str, object]) -> None:
    for name in _UNSUPPORTED:
        if name in parameters:
            raise InputError(f"{what} has the parameter {name}, which is not supported; leave it out")


def _typed_values(
    tensor: pb.ModelInferRequest.InferInputTensor, datatype: Datatype, filled: list[str]
) -> Sequence[Any]:
    if not filled:
        if element_count(tensor.name, datatype, tensor.shape) == 0:
            return ()
        raise InputError(f"input {tensor.name} has no data; send it in raw_input_contents")
    if datatype.field is None:
        raise InputError(f"input {tensor.name} has {filled[0]}; {datatype.name} travels raw only")
    if filled != [datatype.field]:
        raise InputError(
            f"input {tensor.name} has {' and '.join(filled)}; {datatype.name} takes {datatype.field} alone"
        )
    values: Sequence[Any] = getattr(tensor.contents, datatype.field)
    return values


def _tensor_metadata(spec: TensorSpec) -> Metadata:
    return Metadata(name=spec.name, datatype=datatype_of(spec.dtype).name, shape=_shape(spec))


def _shape(spec: TensorSpec) -> list[int]:
    return [-1 if axis is None else axis for axis in spec.shape]


def _config_type(spec: TensorSpec) -> str:
    name = datatype_of(spec.dtype).name
    return f"TYPE_{'STRING' if name == BYTES else name}"
