"""The protocol over HTTP, as bodies: JSON, with tensors in it or behind it in binary, to messages and back."""

import json
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass, field
from typing import Any

from google.protobuf.message import Message

from guard.errors import InputError
from serving._pb import open_inference_pb2 as pb
from serving.datatypes import DATATYPES, from_raw, from_typed, to_raw
from serving.json_tensors import from_json, read_json, to_json

__all__ = ["Form", "decode_infer", "decode_object", "encode_infer", "plain", "set_parameters"]

_SIZE, _BINARY, _ALL_BINARY = "binary_data_size", "binary_data", "binary_data_output"
_INT64_MAX, _UINT64_MAX = 2**63 - 1, 2**64 - 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Form:
    """How a client wants its outputs.

    Args:
        all_binary: Behind the JSON rather than in it, where nothing is said of the output itself.
        binary: What is said of single outputs.
    """

    all_binary: bool = False
    binary: Mapping[str, bool] = field(default_factory=dict)

    def is_binary(self, output: str) -> bool:
        """Say whether an output goes behind the JSON."""
        return self.binary.get(output, self.all_binary)


def decode_infer(body: bytes, n_json: int | None, *, model: str, version: str) -> tuple[pb.ModelInferRequest, Form]:
    """Return the request that a body holds, its tensors raw, and how its answer is wanted.

    Args:
        body: JSON, and the raw bytes of tensors behind it.
        n_json: Bytes of the JSON, as Inference-Header-Content-Length says; None: there is nothing behind it.
        model: From the address.
        version: From the address, or empty.

    Raises:
        InputError: The body is no request, or what it says twice does not agree.
    """
    n_json = len(body) if n_json is None else n_json
    if n_json > len(body):
        raise InputError(f"Inference-Header-Content-Length is {n_json}, but the body has {len(body)} bytes")
    content = decode_object(body[:n_json])
    request = pb.ModelInferRequest(model_name=model, model_version=version, id=_text(content, "id", default=""))
    parameters = _object(content, "parameters")
    all_binary = _flag(parameters, _ALL_BINARY) or False
    set_parameters(request.parameters, parameters)
    position = n_json
    for tensor in _objects(content, "inputs"):
        position += _add_input(request, tensor, body, position)
    if position != len(body):
        raise InputError(f"{len(body) - position} bytes behind the JSON belong to no input; say {_SIZE} for each")
    binary = {}
    for output in _objects(content, "outputs"):
        name, parameters = _text(output, "name"), _object(output, "parameters")
        if (wanted := _flag(parameters, _BINARY)) is not None:
            binary[name] = wanted
        set_parameters(request.outputs.add(name=name).parameters, parameters)
    return request, Form(all_binary=all_binary, binary=binary)


def encode_infer(response: pb.ModelInferResponse, form: Form) -> tuple[bytes, int | None]:
    """Return the body of an answer, and the bytes of its JSON where something is behind it.

    Raises:
        InputError: An output cannot be said in JSON.
    """
    content: dict[str, Any] = {"model_name": response.model_name, "model_version": response.model_version}
    if response.id:
        content["id"] = response.id
    if response.parameters:
        content["parameters"] = {name: _plain_value(None, response.parameters[name]) for name in response.parameters}
    content["outputs"] = []
    raws = response.raw_output_contents or [_typed_raw(tensor) for tensor in response.outputs]
    behind = []
    for tensor, raw in zip(response.outputs, raws, strict=True):
        output: dict[str, Any] = {"name": tensor.name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if form.is_binary(tensor.name):
            output["parameters"] = {_SIZE: len(raw)}
            behind.append(raw)
        else:
            array = from_raw(tensor.name, DATATYPES[tensor.datatype], tensor.shape, raw)
            output["data"] = to_json(tensor.name, array)
        content["outputs"].append(output)
    header = json.dumps(content, allow_nan=False).encode()
    return header + b"".join(behind), len(header) if behind else None


def decode_object(content: bytes) -> dict[str, Any]:
    """Return the JSON object that a text holds.

    Raises:
        InputError: It holds none.
    """
    found = read_json(content)
    if not isinstance(found, dict):
        raise InputError("the request is JSON, but no object")
    return found


def plain(message: Message) -> dict[str, Any]:
    """Return a message as JSON has it, without messages that are not there and maps that are empty."""
    found = {}
    for each in message.DESCRIPTOR.fields:
        value = getattr(message, each.name)
        is_absent = each.message_type is not None and not each.is_repeated and not message.HasField(each.name)
        if not is_absent and not (_is_map(each) and not value):
            found[each.name] = _plain_field(each, value)
    return found


def set_parameters(into: MutableMapping[str, Any], parameters: Mapping[str, Any]) -> None:
    """Put JSON parameters into a message's.

    Raises:
        InputError: One is neither true or false, nor a number, nor a text.
    """
    for name, value in parameters.items():
        kind = _parameter_kind(name, value)
        try:
            setattr(into[_checked_text(name)], kind, value)
        except (AttributeError, ValueError, TypeError) as error:
            raise InputError(f"the parameter {name!r} has a value that is not taken here") from error


def _add_input(request: pb.ModelInferRequest, tensor: Mapping[str, Any], body: bytes, position: int) -> int:
    """Add one input, and return how many bytes of the body behind the JSON are its own."""
    name, datatype = _text(tensor, "name"), _text(tensor, "datatype")
    shape, parameters = _shape(name, tensor), _object(tensor, "parameters")
    size = parameters.pop(_SIZE, None)
    added = request.inputs.add(name=name, datatype=datatype, shape=shape)
    set_parameters(added.parameters, parameters)
    if (size is None) == ("data" not in tensor):
        raise InputError(f"input {name} has no data, or has them twice; send either data or {_SIZE}")
    if size is None:
        request.raw_input_contents.append(_raw(name, datatype, shape, tensor["data"]))
        return 0
    if type(size) is not int or not 0 <= size <= len(body) - position:
        raise InputError(
            f"input {name} has {_SIZE} {size!r}, but {len(body) - position} bytes are left behind the JSON"
        )
    request.raw_input_contents.append(body[position : position + size])
    return size


def _typed_raw(tensor: pb.ModelInferResponse.InferOutputTensor) -> bytes:
    """Return the raw bytes of an output that another server gave as typed contents."""
    datatype = DATATYPES[tensor.datatype]
    values = getattr(tensor.contents, datatype.field) if datatype.field else ()
    return to_raw(from_typed(tensor.name, datatype, tensor.shape, values))


def _raw(name: str, datatype: str, shape: list[int], data: Any) -> bytes:
    if datatype not in DATATYPES:
        raise InputError(f"input {name} has datatype {datatype!r}; the protocol has {', '.join(DATATYPES)}")
    return to_raw(from_json(name, DATATYPES[datatype], shape, data))


def _shape(name: str, tensor: Mapping[str, Any]) -> list[int]:
    shape = tensor.get("shape")
    if not isinstance(shape, list) or any(type(axis) is not int or abs(axis) > _INT64_MAX for axis in shape):
        raise InputError(f"input {name} has no shape; give it as an array of whole numbers")
    return shape


def _objects(content: Mapping[str, Any], key: str) -> list[dict[str, Any]]:
    found = content.get(key, [])
    if not isinstance(found, list) or not all(isinstance(each, dict) for each in found):
        raise InputError(f"{key!r} is no array of objects")
    return found


def _object(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    found = content.get(key, {})
    if not isinstance(found, dict):
        raise InputError(f"{key!r} is no object")
    return dict(found)


def _text(content: Mapping[str, Any], key: str, *, default: str | None = None) -> str:
    found = content.get(key, default)
    if not isinstance(found, str):
        raise InputError(f"{key!r} is missing or no text")
    return _checked_text(found)


def _checked_text(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InputError("a text holds half a surrogate pair, which is no text") from error
    return text


def _flag(parameters: dict[str, Any], key: str) -> bool | None:
    found = parameters.pop(key, None)
    if found is not None and not isinstance(found, bool):
        raise InputError(f"the parameter {key!r} is neither true nor false")
    return found


def _parameter_kind(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return "bool_param"
    if isinstance(value, int):
        return "int64_param" if value <= _INT64_MAX else "uint64_param"
    if isinstance(value, float):
        return "double_param"
    if isinstance(value, str):
        _checked_text(value)
        return "string_param"
    raise InputError(f"the parameter {name!r} is neither true or false, nor a number, nor a text")


def _plain_field(each: Any, value: Any) -> Any:
    if _is_map(each):
        return {key: _plain_value(each.message_type.fields_by_name["value"], value[key]) for key in value}
    if each.is_repeated:
        return [_plain_value(each, item) for item in value]
    return _plain_value(each, value)


def _plain_value(each: Any, value: Any) -> Any:
    if isinstance(value, pb.InferParameter):
        return getattr(value, value.WhichOneof("parameter_choice") or "string_param")
    if isinstance(value, Message):
        return plain(value)
    return each.enum_type.values_by_number[value].name if each.enum_type else value


def _is_map(each: Any) -> bool:
    return each.message_type is not None and bool(each.message_type.GetOptions().map_entry)
