"""Inference requests to another server and its answers: what is read of them and written into them.

Everything else in a message stays as it is, fields that this version of the protocol does not know among it.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

from numpy.typing import NDArray

from guard.errors import InputError, ModelError
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb
from serving.codec import model_config, model_metadata
from serving.datatypes import datatype_of, from_raw, from_typed, to_raw

__all__ = [
    "add_to_config",
    "add_to_metadata",
    "check_inspectable",
    "forwarded",
    "is_plain",
    "own_output",
    "with_tensors",
]

Array = NDArray[Any]
Output = pb.ModelInferResponse.InferOutputTensor
Tensors = Sequence[tuple[Output, bytes | None]]

_SHARED_MEMORY = "shared_memory_"
_CLASSIFICATION = "classification"


def check_inspectable(request: pb.ModelInferRequest, own: str) -> None:
    """Refuse what would keep the guard from seeing what the model sees, or from correcting what it answers.

    Args:
        request: As the client sent it.
        own: The output that is guarded.

    Raises:
        InputError: A tensor is in shared memory, an output is asked for twice, or the guarded one as classes.
    """
    parameters = [(tensor.name, tensor.parameters) for tensor in request.inputs]
    parameters += [(output.name, output.parameters) for output in request.outputs]
    for tensor, given in parameters:
        if any(name.startswith(_SHARED_MEMORY) for name in given):
            raise InputError(f"tensor {tensor} is in shared memory, which the guard cannot see; send its bytes")
    names = [output.name for output in request.outputs]
    if len(set(names)) != len(names):
        raise InputError(f"an output was asked for twice among {', '.join(names)}; ask once")
    for output in request.outputs:
        if output.name == own and _CLASSIFICATION in output.parameters:
            raise InputError(f"output {own} has the parameter {_CLASSIFICATION}, which is not supported; leave it out")


def is_plain(request: pb.ModelInferRequest) -> bool:
    """Return whether a request says nothing beside its inputs that could make a server answer otherwise."""
    return not (request.model_version or request.parameters or any(tensor.parameters for tensor in request.inputs))


def forwarded(
    request: pb.ModelInferRequest, *, model: str, own: str, added: Collection[str], withheld: Collection[str]
) -> pb.ModelInferRequest:
    """Return the request as the upstream gets it: with the guarded output, and without those the guard adds.

    Args:
        request: As the client sent it.
        model: What the upstream calls the model.
        own: The output that is guarded.
        added: Outputs that the guard adds.
        withheld: Outputs that no client gets.

    Raises:
        InputError: An output that is withheld was asked for.
    """
    names = [output.name for output in request.outputs]
    if refused := [name for name in names if name in withheld]:
        raise InputError(f"output {refused[0]!r} was asked for, which is not corrected; ask for {own}")
    if request.model_name == model and (not names or (own in names and not set(names) & set(added))):
        return request
    changed = pb.ModelInferRequest()
    changed.CopyFrom(request)
    changed.model_name = model
    if names:
        kept = [output for output in request.outputs if output.name not in added]
        del changed.outputs[:]
        changed.outputs.extend(kept)
        if own not in names:
            changed.outputs.add(name=own)
    return changed


def own_output(response: pb.ModelInferResponse, expected: TensorSpec) -> Array:
    """Return the array of the guarded output, in whichever form it came.

    Raises:
        ModelError: It is missing, doubled, in shared memory, of another type, or its data does not fit its shape.
    """
    name, found = expected.name, [pair for pair in _tensors(response) if pair[0].name == expected.name]
    if len(found) != 1:
        raise ModelError(f"the upstream answers {len(found)} times with {name}; the guarded output has to come once")
    tensor, raw = found[0]
    wanted = datatype_of(expected.dtype)
    if tensor.datatype != wanted.name:
        raise ModelError(
            f"the upstream answers {name} as {tensor.datatype[:20]}; the bundle's original as {wanted.name}"
        )
    try:
        if raw is not None:
            return from_raw(name, wanted, tensor.shape, raw)
        return from_typed(name, wanted, tensor.shape, getattr(tensor.contents, wanted.field) if wanted.field else ())
    except InputError as error:
        raise ModelError(f"the upstream's answer does not hold: {error}") from error


def with_tensors(
    response: pb.ModelInferResponse,
    tensors: Mapping[str, Array],
    *,
    asked: Sequence[str],
    withheld: Collection[str],
) -> pb.ModelInferResponse:
    """Return the upstream's response with tensors put in place of its own, or after them, in the form it chose.

    Args:
        response: Of the upstream; it is left as it is.
        tensors: By name.
        asked: The outputs to answer with, in order; none: all but those withheld.
        withheld: Outputs that no client gets.
    """
    is_raw = bool(response.raw_output_contents)
    theirs = {tensor.name: (tensor, raw) for tensor, raw in _tensors(response)}
    names = asked or [name for name in (*theirs, *(n for n in tensors if n not in theirs)) if name not in withheld]
    changed = pb.ModelInferResponse()
    changed.CopyFrom(response)
    del changed.outputs[:], changed.raw_output_contents[:]
    for name in names:
        if name not in theirs and name not in tensors:
            continue
        tensor, raw = theirs.get(name, (Output(name=name), None))
        put = changed.outputs.add()
        put.CopyFrom(tensor)
        if name in tensors:
            raw = _put(put, tensors[name], is_raw=is_raw)
        if raw is not None:
            changed.raw_output_contents.append(raw)
    return changed


def add_to_metadata(response: pb.ModelMetadataResponse, added: Sequence[TensorSpec], withheld: Collection[str]) -> None:
    """Append the guard's outputs to what the upstream says of the model, and take out those withheld."""
    kept = [output for output in response.outputs if output.name not in withheld]
    del response.outputs[:]
    response.outputs.extend(kept)
    response.outputs.extend(model_metadata("", versions=(), platform="", inputs=(), outputs=added).outputs)


def add_to_config(config: pb.ModelConfig, added: Sequence[TensorSpec], withheld: Collection[str]) -> None:
    """Append the guard's outputs to how the upstream configures the model, and take out those withheld."""
    kept = [output for output in config.output if output.name not in withheld]
    del config.output[:]
    config.output.extend(kept)
    config.output.extend(model_config("", platform="", max_rows=0, inputs=(), outputs=added).output)


def _tensors(response: pb.ModelInferResponse) -> Tensors:
    for tensor in response.outputs:
        if any(name.startswith(_SHARED_MEMORY) for name in tensor.parameters):
            raise ModelError(f"the upstream answers {tensor.name} in shared memory, which was not asked for")
    raw = response.raw_output_contents
    if raw and len(raw) != len(response.outputs):
        raise ModelError(f"the upstream answers with {len(response.outputs)} outputs and {len(raw)} raw contents")
    return list(zip(response.outputs, raw or [None] * len(response.outputs), strict=True))


def _put(tensor: Output, array: Array, *, is_raw: bool) -> bytes | None:
    """Write an array into a tensor of a response, and return its bytes if they travel apart from it."""
    datatype = datatype_of(array.dtype)
    tensor.ClearField("contents")
    tensor.datatype, tensor.shape[:] = datatype.name, array.shape
    if is_raw:
        return to_raw(array)
    # A type without typed contents came raw, so that what is here has them.
    getattr(tensor.contents, str(datatype.field)).extend(array.ravel().tolist())
    return None
