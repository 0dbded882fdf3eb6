"""A plain v2 server with no guard, which keeps what it was asked: y = relu(x) and what a test adds to it."""

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import grpc
import numpy as np
from servers import SERVICE, TIMEOUT_S

from serving._pb import open_inference_pb2 as pb
from serving.config import UpstreamSettings

__all__ = ["DETAILS", "MISSING", "Plain", "plain", "relu"]

MISSING = "Missing"
DETAILS = ("grpc-status-details-bin", b"\x08\x05why")


def relu(request: pb.ModelInferRequest) -> pb.ModelInferResponse:
    """Answer as the tiny model does, in the form of the request."""
    rows = np.frombuffer(request.raw_input_contents[0], "<f4") if request.raw_input_contents else None
    typed = request.inputs[0].contents.fp32_contents
    answers = np.maximum(np.array(typed, dtype=np.float32) if rows is None else rows, 0)
    response = pb.ModelInferResponse(model_name=request.model_name, model_version="3", id=request.id)
    output = response.outputs.add(name="y", datatype="FP32", shape=request.inputs[0].shape)
    if rows is None:
        output.contents.fp32_contents.extend(answers.tolist())
    else:
        response.raw_output_contents.append(answers.tobytes())
    return response


@dataclass
class Plain:
    """An upstream, seen from a test: what it answers and what it was asked."""

    model: str = "tiny"
    answer: Callable[[pb.ModelInferRequest], pb.ModelInferResponse] = relu
    refusal: tuple[grpc.StatusCode, str] | None = None
    ready: bool = True
    port: int = 0
    asked: list[tuple[str, bytes]] = field(default_factory=list)
    metadata: list[tuple[str, Any]] = field(default_factory=list)
    remaining_s: list[float | None] = field(default_factory=list)
    began: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))
    ended: threading.Event = field(default_factory=threading.Event)
    open: threading.Event = field(default_factory=threading.Event)

    @property
    def settings(self) -> UpstreamSettings:
        return UpstreamSettings(address=f"127.0.0.1:{self.port}", model=self.model)

    def requests(self) -> list[pb.ModelInferRequest]:
        return [pb.ModelInferRequest.FromString(content) for name, content in self.asked if name == "ModelInfer"]

    def service(self, details: Any) -> grpc.RpcMethodHandler | None:
        service, name = details.method.lstrip("/").split("/")
        if service != SERVICE or name == MISSING:
            return None
        if not hasattr(self, name):
            return grpc.stream_stream_rpc_method_handler(lambda requests, context: self.echo(name, requests, context))
        return grpc.unary_unary_rpc_method_handler(lambda content, context: self.unary(name, content, context))

    def note(self, name: str, content: bytes, context: grpc.ServicerContext) -> None:
        context.add_callback(self.ended.set)
        self.asked.append((name, content))
        self.metadata = list(context.invocation_metadata())
        self.remaining_s.append(context.time_remaining())
        context.send_initial_metadata((("from-upstream", "first"), ("bytes-bin", b"\x00\xff")))
        context.set_trailing_metadata((("to-the-end", "last"), *((DETAILS,) if self.refusal else ())))

    def unary(self, name: str, content: bytes, context: grpc.ServicerContext) -> bytes:
        self.note(name, content, context)
        self.began.release()
        assert self.open.wait(TIMEOUT_S)
        if self.refusal:
            context.abort(*self.refusal)
        return getattr(self, name)(content).SerializeToString()

    def echo(self, name: str, requests: Iterator[bytes], context: grpc.ServicerContext) -> Iterator[bytes]:
        for number, content in enumerate(requests):
            if number == 0:
                self.note(name, content, context)
            yield content + b"!"
        if self.refusal:
            context.abort(*self.refusal)

    def ModelInfer(self, content: bytes) -> pb.ModelInferResponse:
        return self.answer(pb.ModelInferRequest.FromString(content))

    def ServerReady(self, _: bytes) -> pb.ServerReadyResponse:
        return pb.ServerReadyResponse(ready=self.ready)

    def ModelReady(self, content: bytes) -> pb.ModelReadyResponse:
        return pb.ModelReadyResponse(ready=self.ready and pb.ModelReadyRequest.FromString(content).name == self.model)

    def ModelMetadata(self, content: bytes) -> pb.ModelMetadataResponse:
        tensor = pb.ModelMetadataResponse.TensorMetadata
        output = tensor(name="y", datatype="FP32", shape=[-1, 3])
        name = pb.ModelMetadataRequest.FromString(content).name
        return pb.ModelMetadataResponse(name=name, versions=["3"], platform="theirs", outputs=[output])

    def ModelConfig(self, content: bytes) -> pb.ModelConfigResponse:
        name = pb.ModelConfigRequest.FromString(content).name
        return pb.ModelConfigResponse(config=pb.ModelConfig(name=name, max_batch_size=8, output=[{"name": "y"}]))

    def ModelStatistics(self, _: bytes) -> pb.ModelStatisticsResponse:
        return pb.ModelStatisticsResponse(model_stats=[{"name": self.model, "inference_count": 7}])

    def RepositoryIndex(self, _: bytes) -> pb.RepositoryIndexResponse:
        return pb.RepositoryIndexResponse(models=[{"name": self.model, "state": "READY"}])


@contextmanager
def plain(upstream: Plain | None = None, **changes: Any) -> Iterator[Plain]:
    """Serve on the port of the upstream, or a free one, until the block ends."""
    upstream = upstream or Plain(**changes)
    upstream.open.set()
    server = grpc.server(ThreadPoolExecutor(8), handlers=[upstream], options=[("grpc.so_reuseport", 0)])
    upstream.port = server.add_insecure_port(f"127.0.0.1:{upstream.port}")
    server.start()
    try:
        yield upstream
    finally:
        stopped = server.stop(None)
        upstream.open.set()
        assert stopped.wait(TIMEOUT_S)
