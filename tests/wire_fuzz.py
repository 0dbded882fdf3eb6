"""Malformed inference requests, one per number, and what must be true of the answer to each.

Request i is drawn from seed i, so that a failure names the request that shows it again.
"""

from collections.abc import Callable
from itertools import chain
from typing import TypeVar

import grpc
import numpy as np
from bundles import CLEAN, TRIGGERED
from servers import SERVICE, TIMEOUT_S, Live, infer_request

from guard import Guard
from serving._pb import open_inference_pb2 as pb

__all__ = ["REFUSALS", "Fuzzer", "request_of"]

REFUSALS = frozenset({grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND, grpc.StatusCode.UNIMPLEMENTED})
"""The only statuses that a malformed request may end with."""

_DATATYPES = ("FP32", "FP64", "FP16", "BF16", "INT32", "UINT8", "BOOL", "BYTES", "FP99", "", "fp32", "\u221e")
_SIZES = (-(2**63), -1, 0, 1, 2, 3, 4, 7, 2**31, 2**62, 2**63 - 1)
_TEXTS = ("", "x", "y", "tiny", "1", "2", "guard_flagged", "a" * 5000, "\x00", "\u1f600", "../tiny", "-1")
_NUMBERS = (np.nan, np.inf, -np.inf, 3.4e38, -3.4e38, 1e-45, 0.0)

T = TypeVar("T")

Mutation = Callable[[pb.ModelInferRequest, np.random.Generator], None]


def request_of(seed: int) -> bytes:
    """Return the request of this number: a good one with up to three things wrong, sometimes down to its bytes."""
    rng = np.random.default_rng([20, seed])
    request = infer_request(_rows(rng))
    for _ in range(rng.integers(4)):
        _MUTATIONS[rng.integers(len(_MUTATIONS))](request, rng)
    content = bytearray(request.SerializeToString())
    for _ in range(rng.integers(4) if rng.random() < 0.3 else 0):
        _damage(content, rng)
    return bytes(content)


def _rows(rng: np.random.Generator) -> np.ndarray:
    known = [CLEAN, TRIGGERED, rng.normal(scale=6, size=(rng.integers(5), 3)).astype(np.float32)]
    return np.concatenate([known[k] for k in rng.integers(3, size=rng.integers(1, 4))])


def _damage(content: bytearray, rng: np.random.Generator) -> None:
    at = int(rng.integers(len(content) + 1))
    match rng.integers(4):
        case 0:
            content[at : at + 1] = rng.bytes(1)
        case 1:
            del content[at : at + int(rng.integers(1, 9))]
        case 2:
            content[at:at] = rng.bytes(int(rng.integers(1, 9)))
        case _:
            del content[at:]


def _one(rng: np.random.Generator, values: tuple[T, ...]) -> T:
    return values[rng.integers(len(values))]


def _retype(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    for tensor in request.inputs:
        tensor.datatype = _one(rng, _DATATYPES)


def _reshape(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    for tensor in request.inputs:
        shape = [_one(rng, _SIZES) for _ in range(rng.integers(6))]
        tensor.shape[:] = shape if rng.random() < 0.7 else [*tensor.shape[:1], *shape]


def _rename(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    for tensor in request.inputs:
        tensor.name = _one(rng, _TEXTS)


def _address(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    setattr(request, _one(rng, ("model_name", "model_version", "id")), _one(rng, _TEXTS))


def _change_raw(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    match rng.integers(5):
        case 0:
            del request.raw_input_contents[:]
        case 1:
            request.raw_input_contents.append(rng.bytes(int(rng.integers(30))))
        case 2 if request.raw_input_contents:
            request.raw_input_contents[0] = request.raw_input_contents[0][: int(rng.integers(12))]
        case 3 if request.raw_input_contents:
            request.raw_input_contents[0] += rng.bytes(int(rng.integers(1, 13)))
        case _:
            request.raw_input_contents[:] = [rng.bytes(12)]


def _type_contents(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    if rng.random() < 0.7:
        del request.raw_input_contents[:]
    for tensor in request.inputs:
        n = int(np.prod(tensor.shape)) if rng.random() < 0.7 and max(tensor.shape, default=0) < 99 else 5
        field = _one(rng, ("fp32_contents", "fp64_contents", "int_contents", "bool_contents", "bytes_contents"))
        values = [b"\xff"] * n if field == "bytes_contents" else rng.integers(2, size=max(n, 0)).tolist()
        getattr(tensor.contents, field).extend(values)


def _duplicate(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    if request.inputs and rng.random() < 0.7:
        request.inputs.append(request.inputs[0])
    else:
        del request.inputs[:]


def _poison(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    if request.raw_input_contents and len(request.raw_input_contents[0]) >= 4:
        value = np.float32(_one(rng, _NUMBERS)).tobytes()
        at = 4 * int(rng.integers(len(request.raw_input_contents[0]) // 4))
        content = request.raw_input_contents[0]
        request.raw_input_contents[0] = content[:at] + value + content[at + 4 :]


def _parametrise(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    name = _one(rng, ("shared_memory_region", "binary_data_size", "sequence_id", "priority", "guard_on_flag", ""))
    places = [request.parameters, *(tensor.parameters for tensor in chain(request.inputs, request.outputs))]
    parameter = places[rng.integers(len(places))][name]
    match rng.integers(4):
        case 0:
            parameter.string_param = _one(rng, _TEXTS)
        case 1:
            parameter.int64_param = _one(rng, _SIZES)
        case 2:
            parameter.bool_param = True
        case _:
            parameter.double_param = float(_one(rng, _NUMBERS))


def _ask_for(request: pb.ModelInferRequest, rng: np.random.Generator) -> None:
    for _ in range(rng.integers(1, 4)):
        request.outputs.add(name=_one(rng, ("y", "y", "guard_flagged", *_TEXTS)))


_MUTATIONS: tuple[Mutation, ...] = (
    _retype, _reshape, _rename, _address, _change_raw, _type_contents, _duplicate, _poison, _parametrise, _ask_for,
)  # fmt: skip


class Fuzzer:
    """Sends requests to a server of the tiny model and checks what comes back.

    Args:
        server: Running.
        guard: What the server has, or its like: any answer must be its answer.
    """

    def __init__(self, server: Live, guard: Guard) -> None:
        self._ask = server.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._guard = guard

    def send(self, seed: int) -> grpc.StatusCode:
        """Send a request; return its status."""
        content = request_of(seed)
        call = self._ask.future(content, timeout=TIMEOUT_S)
        code = call.code()  # waits for it
        if code is grpc.StatusCode.OK:
            self._check(seed, pb.ModelInferRequest.FromString(content), pb.ModelInferResponse.FromString(call.result()))
        else:
            assert code in REFUSALS, f"request {seed}: {code}, {call.details()}"
            assert len(call.details()) > 10, f"request {seed}: refused without a reason"
        return code

    def _check(self, seed: int, request: pb.ModelInferRequest, response: pb.ModelInferResponse) -> None:
        verdict = self._guard(_sent(request))
        expected = {"y": verdict.outputs.tobytes(), "guard_flagged": verdict.flagged.tobytes()}
        found = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))
        assert found, f"request {seed}: answered with nothing"
        for name in expected.keys() & found.keys():
            assert found[name] == expected[name], f"request {seed}: another {name} than the guard's"


def _sent(request: pb.ModelInferRequest) -> np.ndarray:
    """Return the rows of a request that was answered, read plainly."""
    (tensor,) = request.inputs
    assert (tensor.name, tensor.datatype) == ("x", "FP32")
    if request.raw_input_contents:
        (raw,) = request.raw_input_contents
        return np.frombuffer(raw, "<f4").reshape(tensor.shape)
    return np.array(tensor.contents.fp32_contents, dtype=np.float32).reshape(tensor.shape)
