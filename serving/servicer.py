"""The protocol's calls on one guarded model: decode, delegate, encode. Transport and errors' words are elsewhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from serving._pb import open_inference_pb2 as pb
from serving.codec import add_outputs, decode_inputs, model_config, model_metadata, requested_outputs
from serving.endpoint import VERSION, Endpoint, Served
from serving.errors import NotFoundError, UnsupportedError
from serving.metrics import Metrics
from serving.statistics import Statistics, Tally, Timing
from serving.status import status_code

__all__ = ["EXTENSIONS", "SERVER_NAME", "SERVICE", "Rpc", "Servicer"]

SERVICE = "inference.GRPCInferenceService"
SERVER_NAME = "trigger-guard"
EXTENSIONS = ("model_configuration", "statistics")
"""Triton's names for what is offered beyond the protocol's own six calls."""

_PLATFORM = "onnxruntime_onnx"
_VERSIONS = ("", VERSION)


class Rpc(NamedTuple):
    """A call: the class of its request, and what answers a request with a deadline on the servicer's clock."""

    request: type[Message]
    answer: Callable[[Any, float | None], Awaitable[Message]]


class Servicer:
    """Answers the protocol for one model; used from one event loop.

    Args:
        endpoint: The model.
        metrics: Counts requests.
        version: Of the server.
        clock: Seconds, only ever growing; deadlines are on it.
        now: Seconds since the epoch.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        metrics: Metrics,
        version: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
    ) -> None:
        self._endpoint = endpoint
        self._metrics = metrics
        self._version = version
        self._clock = clock
        self._now = now
        self._statistics = Statistics()

    def rpcs(self) -> Mapping[str, Rpc]:
        """Return every call by its name in the protocol."""
        return {
            "ServerLive": Rpc(pb.ServerLiveRequest, _at_once(self.server_live)),
            "ServerReady": Rpc(pb.ServerReadyRequest, _at_once(self.server_ready)),
            "ServerMetadata": Rpc(pb.ServerMetadataRequest, _at_once(self.server_metadata)),
            "ModelReady": Rpc(pb.ModelReadyRequest, _at_once(self.model_ready)),
            "ModelMetadata": Rpc(pb.ModelMetadataRequest, _at_once(self.model_metadata)),
            "ModelConfig": Rpc(pb.ModelConfigRequest, _at_once(self.model_config)),
            "ModelStatistics": Rpc(pb.ModelStatisticsRequest, _at_once(self.model_statistics)),
            "RepositoryIndex": Rpc(pb.RepositoryIndexRequest, _at_once(self.repository_index)),
            "ModelInfer": Rpc(pb.ModelInferRequest, self.model_infer),
        }

    def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Say that the server runs."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Say whether the server takes requests: until it is told to stop."""
        return pb.ServerReadyResponse(ready=self._ready)

    def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Say what this server is."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Say whether a model takes requests; one that is not served does not, which is no error."""
        served = request.name == self._endpoint.name and request.version in _VERSIONS
        return pb.ModelReadyResponse(ready=served and self._ready)

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Say what the model takes and gives."""
        endpoint = self._find(request.name, request.version)
        return model_metadata(
            endpoint.name, version=VERSION, platform=_PLATFORM, inputs=endpoint.inputs, outputs=endpoint.outputs
        )

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Say the same in Triton's terms, with the greatest number of rows."""
        endpoint = self._find(request.name, request.version)
        config = model_config(
            endpoint.name,
            platform=_PLATFORM,
            max_rows=endpoint.max_rows,
            inputs=endpoint.inputs,
            outputs=endpoint.outputs,
        )
        return pb.ModelConfigResponse(config=config)

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Say what was counted since the start; no name means every model."""
        endpoint = self._find(request.name or self._endpoint.name, request.version)
        return pb.ModelStatisticsResponse(model_stats=[_statistics(endpoint.name, self._statistics)])

    def repository_index(self, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
        """List the one model.

        Raises:
            UnsupportedError: A repository is named; there is but the one bundle.
        """
        if request.repository_name:
            raise UnsupportedError("repository_name is not supported; leave it empty")
        state = "READY" if self._ready else "UNAVAILABLE"
        index = pb.RepositoryIndexResponse.ModelIndex(name=self._endpoint.name, version=VERSION, state=state)
        return pb.RepositoryIndexResponse(models=[index] if self._ready or not request.ready else [])

    async def model_infer(self, request: pb.ModelInferRequest, deadline: float | None = None) -> pb.ModelInferResponse:
        """Answer an inference request and account for it.

        Args:
            request: Rows to judge and answer.
            deadline: On the servicer's clock.

        Raises:
            GuardError: Any branch of the tree (see Endpoint.infer).
        """
        started, status = self._clock(), grpc.StatusCode.OK
        try:
            self._find(request.model_name, request.model_version)
            return await self._infer(request, deadline, started)
        except BaseException as error:
            status = self._status(error, deadline)
            if request.model_name == self._endpoint.name:
                self._statistics.fail.add(self._clock() - started)
            raise
        finally:
            self._metrics.count_request(request.model_name, status)

    async def _infer(
        self, request: pb.ModelInferRequest, deadline: float | None, started: float
    ) -> pb.ModelInferResponse:
        names = requested_outputs(request, [spec.name for spec in self._endpoint.outputs])
        served = await self._endpoint.infer(partial(decode_inputs, request, self._endpoint.inputs), deadline=deadline)
        encoding = self._clock()
        response = _response(request, self._endpoint.name, names, served)
        ended = self._clock()
        timing = Timing(
            total_s=ended - started,
            queue_s=served.queue_s,
            compute_input_s=served.decode_s,
            compute_infer_s=served.compute_s,
            compute_output_s=ended - encoding,
        )
        self._statistics.add_success(timing, n_rows=served.n_rows, now_ms=round(self._now() * 1000))
        return response

    @property
    def _ready(self) -> bool:
        return not self._endpoint.runner.stopping

    def _find(self, name: str, version: str) -> Endpoint:
        if name != self._endpoint.name:
            raise NotFoundError(f"model {name!r} is not served here; {self._endpoint.name!r} is")
        if version not in _VERSIONS:
            raise NotFoundError(f"model {name!r} has no version {version!r}; it has {VERSION!r}")
        return self._endpoint

    def _status(self, error: BaseException, deadline: float | None) -> grpc.StatusCode:
        # gRPC cancels a call whose deadline passes: to its caller that is no cancellation.
        if isinstance(error, asyncio.CancelledError) and deadline is not None and self._clock() >= deadline:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return status_code(error)


def _at_once(method: Callable[[Any], Message]) -> Callable[[Any, float | None], Awaitable[Message]]:
    async def answer(request: Message, _: float | None) -> Message:
        return method(request)

    return answer


def _response(
    request: pb.ModelInferRequest, model_name: str, names: tuple[str, ...], served: Served
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=model_name, model_version=VERSION, id=request.id)
    if served.n_flagged is not None:
        response.parameters["guard_n_flagged"].int64_param = served.n_flagged
    add_outputs(response, {name: served.tensors[name] for name in names})
    return response


def _statistics(name: str, statistics: Statistics) -> pb.ModelStatistics:
    parts = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
    tallies = {part: _duration(getattr(statistics, part)) for part in parts}
    return pb.ModelStatistics(
        name=name,
        version=VERSION,
        last_inference=statistics.last_inference_ms,
        inference_count=statistics.n_rows,
        execution_count=statistics.success.count,
        inference_stats=pb.InferStatistics(**tallies),
    )


def _duration(tally: Tally) -> pb.StatisticDuration:
    return pb.StatisticDuration(count=tally.count, ns=tally.ns)
