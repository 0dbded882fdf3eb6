"""A real server in this process, on its own event loop in a thread, and a real channel to it."""

import asyncio
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import grpc
import numpy as np
from bundles import clean_scores, manifest
from prometheus_client import CollectorRegistry

from guard import Guard
from guard.bundle import Bundle
from guard.input_checks import check_inputs
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb
from serving.config import Limits, ServerConfig
from serving.server import Running, serve
from serving.store import Store

__all__ = ["TIMEOUT_S", "Client", "GatedModel", "Live", "channel_to", "infer_request", "live", "tensors", "tiny_guard",
           "wait_for"]  # fmt: skip

SERVICE = "inference.GRPCInferenceService"
TIMEOUT_S = 20


class GatedModel:
    """The tiny model in numpy, y = min(relu(x), cap), whose runs wait until they are let through."""

    inputs = (TensorSpec(name="x", dtype="float32", shape=(None, 3)),)

    def __init__(self, *, cap=np.inf, error=None):
        self.cap, self.error = cap, error
        self.started, self.open = threading.Semaphore(0), threading.Event()
        self.rows_run = []
        self.open.set()

    def close(self):
        """Hold the runs from now on, and forget those before."""
        self.open.clear()
        self.started, self.rows_run = threading.Semaphore(0), []

    def run(self, inputs, names):
        rows = check_inputs(inputs, self.inputs)["x"]
        self.started.release()
        assert self.open.wait(TIMEOUT_S)
        if self.error:
            raise self.error
        self.rows_run.append(len(rows))
        return tuple(np.clip(rows, 0, self.cap) for _ in names)


def tiny_guard(original=None, bounded=None) -> Guard:
    """Return a guard round models in numpy that answer as the tiny bundle's do."""
    bundle = Bundle(manifest=manifest(), original=b"", bounded=b"", clean_scores=clean_scores())
    return Guard(bundle, original=original or GatedModel(), bounded=bounded or GatedModel(cap=4))


@dataclass(frozen=True)
class Client:
    """A channel to a server, in this process or another."""

    channel: grpc.Channel

    def rpc(self, name: str) -> grpc.UnaryUnaryMultiCallable:
        """Return a callable for one of the protocol's calls."""
        return self.channel.unary_unary(
            f"/{SERVICE}/{name}",
            request_serializer=lambda request: request.SerializeToString(),
            response_deserializer=getattr(pb, f"{name}Response").FromString,
        )

    def call(self, name: str, request: Any = None, **kwargs: Any) -> Any:
        """Call and return the answer; an empty request by default."""
        return self.rpc(name)(request or getattr(pb, f"{name}Request")(), **{"timeout": TIMEOUT_S, **kwargs})

    def infer(self, rows, **kwargs: Any) -> pb.ModelInferResponse:
        """Ask the tiny model about rows."""
        return self.call("ModelInfer", infer_request(rows), **kwargs)

    def refuses(self, request: Any, name: str = "ModelInfer") -> tuple[grpc.StatusCode, str]:
        """Return the status of a call that must fail."""
        try:
            answer = self.call(name, request)
        except grpc.RpcError as error:
            return error.code(), error.details()
        raise AssertionError(f"answered {answer}")


@dataclass(frozen=True)
class Live(Client):
    """A server of this process, seen from a client."""

    running: Running
    registry: CollectorRegistry
    stop: threading.Event
    loop: asyncio.AbstractEventLoop

    def reload(self) -> None:
        """Serve what lies in the store now."""
        asyncio.run_coroutine_threadsafe(self.running.reload(), self.loop).result(TIMEOUT_S)

    def sample(self, name: str, **labels: str) -> float | None:
        """Return the value of one series."""
        return self.registry.get_sample_value(name, {"model": "tiny", **labels})


@contextmanager
def live(
    guard: Guard | None = None,
    *,
    limits: Limits | None = None,
    store: Store | None = None,
    credentials: grpc.ChannelCredentials | None = None,
    tracer: Any = None,
    clock: Callable[[], float] = time.monotonic,
    **config: Any,
) -> Iterator[Live]:
    """Serve a guard, or what is in a store, on free ports of 127.0.0.1 until the block ends.

    With credentials, the channel is one of a client that uses TLS.
    """
    stop, registry, started = threading.Event(), CollectorRegistry(), Future()
    settings = ServerConfig(port=0, metrics_port=0, limits=limits or Limits(grace_s=5), **config)

    async def main() -> None:
        try:
            served = guard or (None if store else tiny_guard())
            async with serve(served, settings, store=store, registry=registry, tracer=tracer, clock=clock) as running:
                started.set_result((running, asyncio.get_running_loop()))
                await asyncio.to_thread(stop.wait)
        except BaseException as error:
            if started.done():
                raise
            started.set_exception(error)

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        running, loop = started.result(TIMEOUT_S)
        with channel_to(running.port, credentials) as channel:
            yield Live(running=running, channel=channel, registry=registry, stop=stop, loop=loop)
    finally:
        stop.set()
        thread.join(TIMEOUT_S)
    assert not thread.is_alive()


def wait_for(condition) -> None:
    """Return once the condition holds, or fail."""
    end = time.monotonic() + TIMEOUT_S
    while not condition():
        assert time.monotonic() < end, "it never came to pass"
        time.sleep(0.005)


def channel_to(port: int, credentials: grpc.ChannelCredentials | None = None) -> grpc.Channel:
    """Return a channel to a server of this machine."""
    address = f"127.0.0.1:{port}"
    return grpc.secure_channel(address, credentials) if credentials else grpc.insecure_channel(address)


def infer_request(rows, *, model="tiny", version="", **fields: Any) -> pb.ModelInferRequest:
    """Return a raw request for the tiny model."""
    rows = np.asarray(rows, dtype=np.float32)
    tensor = pb.ModelInferRequest.InferInputTensor(name="x", datatype="FP32", shape=rows.shape)
    raw = [rows.astype("<f4").tobytes()]
    return pb.ModelInferRequest(
        model_name=model, model_version=version, inputs=[tensor], raw_input_contents=raw, **fields
    )


def tensors(response: pb.ModelInferResponse) -> dict[str, list[Any]]:
    """Return the outputs of a response as lists, by name."""
    dtypes = {"BOOL": "?", "INT64": "<i8", "FP32": "<f4"}
    return {
        tensor.name: np.frombuffer(raw, dtypes[tensor.datatype]).reshape(tensor.shape).tolist()
        for tensor, raw in zip(response.outputs, response.raw_output_contents, strict=True)
    }
