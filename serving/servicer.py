"""The protocol's calls on guarded models: decode, delegate, encode. Transport and errors' words are elsewhere."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from typing import Any, NamedTuple

import grpc
from google.protobuf.message import Message

from serving._pb import open_inference_pb2 as pb
from serving.codec import (
    add_outputs,
    decode_inputs,
    model_config,
    model_metadata,
    model_statistics,
    requested_outputs,
    stated_rows,
)
from serving.endpoint import Served
from serving.events import Account, Observers
from serving.metrics import UNKNOWN, Metrics
from serving.repository import Repository
from serving.repository_calls import load_model, repository_index, unload_model
from serving.statistics import Timing
from serving.status import status_code
from serving.versions import ServedVersion

__all__ = ["EXTENSIONS", "SERVER_NAME", "SERVICE", "Rpc", "Servicer"]

SERVICE = "inference.GRPCInferenceService"
SERVER_NAME = "trigger-guard"
EXTENSIONS = ("model_configuration", "model_repository", "statistics")
"""Triton's names for what is offered beyond the protocol's own six calls."""

_PLATFORM = "onnxruntime_onnx"
_TRANSIT_S = 0.05
"""A caller's deadline passes before the server's, which begins with the request's arrival."""


class Rpc(NamedTuple):
    """A call: the class of its request, and what answers a request with a deadline on the servicer's clock."""

    request: type[Message]
    answer: Callable[[Any, float | None], Awaitable[Message]]


class Servicer:
    """Answers the protocol for the models of a repository; used from one event loop.

    Args:
        repository: The models.
        metrics: Counts requests.
        version: Of the server.
        clock: Seconds, only ever growing; deadlines are on it.
        now: Seconds since the epoch.
        observers: Told of every inference request that ended.
    """

    def __init__(
        self,
        repository: Repository,
        *,
        metrics: Metrics,
        version: str,
        clock: Callable[[], float] = time.monotonic,
        now: Callable[[], float] = time.time,
        observers: Observers = Observers(),  # noqa: B008 - a value
    ) -> None:
        self._repository = repository
        self._models = repository.models
        self._metrics = metrics
        self._version = version
        self._clock = clock
        self._now = now
        self._observers = observers

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
            "RepositoryIndex": Rpc(pb.RepositoryIndexRequest, _at_once(partial(repository_index, self._models))),
            "RepositoryModelLoad": Rpc(pb.RepositoryModelLoadRequest, partial(load_model, self._repository)),
            "RepositoryModelUnload": Rpc(pb.RepositoryModelUnloadRequest, partial(unload_model, self._repository)),
            "ModelInfer": Rpc(pb.ModelInferRequest, self.model_infer),
        }

    def server_live(self, _: pb.ServerLiveRequest) -> pb.ServerLiveResponse:
        """Say that the server runs."""
        return pb.ServerLiveResponse(live=True)

    def server_ready(self, _: pb.ServerReadyRequest) -> pb.ServerReadyResponse:
        """Say whether the server is not stopping, and every model that it should serve has a version that it does."""
        return pb.ServerReadyResponse(ready=self._models.ready)

    def server_metadata(self, _: pb.ServerMetadataRequest) -> pb.ServerMetadataResponse:
        """Say what this server is."""
        return pb.ServerMetadataResponse(name=SERVER_NAME, version=self._version, extensions=EXTENSIONS)

    def model_ready(self, request: pb.ModelReadyRequest) -> pb.ModelReadyResponse:
        """Say whether a model takes requests; one that is not served does not, which is no error."""
        return pb.ModelReadyResponse(ready=self._models.is_ready(request.name, request.version))

    def model_metadata(self, request: pb.ModelMetadataRequest) -> pb.ModelMetadataResponse:
        """Say what the model takes and gives, and which versions of it serve."""
        found = self._models.find(request.name, request.version)
        return model_metadata(
            found.model,
            versions=[version.version for version in self._models.served(found.model)],
            platform=_PLATFORM,
            inputs=found.endpoint.inputs,
            outputs=found.endpoint.outputs,
        )

    def model_config(self, request: pb.ModelConfigRequest) -> pb.ModelConfigResponse:
        """Say the same in Triton's terms, with the greatest number of rows."""
        found = self._models.find(request.name, request.version)
        config = model_config(
            found.model,
            platform=_PLATFORM,
            max_rows=found.endpoint.max_rows,
            inputs=found.endpoint.inputs,
            outputs=found.endpoint.outputs,
        )
        return pb.ModelConfigResponse(config=config)

    def model_statistics(self, request: pb.ModelStatisticsRequest) -> pb.ModelStatisticsResponse:
        """Say what was counted since a model was loaded first; no name means every model, no version every version."""
        found = self._models.served(request.name, request.version)
        if request.name and not found:
            self._models.find(request.name, request.version)
        stats = [model_statistics(each.model, version=each.version, statistics=each.statistics) for each in found]
        return pb.ModelStatisticsResponse(model_stats=stats)

    async def model_infer(self, request: pb.ModelInferRequest, deadline: float | None = None) -> pb.ModelInferResponse:
        """Answer an inference request and account for it.

        Args:
            request: Rows to judge and answer.
            deadline: On the servicer's clock.

        Raises:
            GuardError: Any branch of the tree (see Endpoint.infer).
        """
        started, status, version = self._clock(), grpc.StatusCode.OK, None
        account = Account(request.id)
        try:
            version = self._models.find(request.model_name, request.model_version)
            account.found(version.label, version.version)
            with version.in_use():
                return await self._infer(version, request, deadline, started, account)
        except BaseException as error:
            status = self._status(error, deadline)
            account.failed(error)
            if version is not None:
                version.statistics.fail.add(self._clock() - started)
            raise
        finally:
            self._metrics.count_request(UNKNOWN if version is None else version.label, status)
            self._observers.on_request(account.close(status.name, ended=self._now(), seconds=self._clock() - started))

    async def _infer(
        self,
        version: ServedVersion,
        request: pb.ModelInferRequest,
        deadline: float | None,
        started: float,
        account: Account,
    ) -> pb.ModelInferResponse:
        endpoint = version.endpoint
        names = requested_outputs(request, [spec.name for spec in endpoint.outputs])
        decode = partial(decode_inputs, request, endpoint.inputs)
        n_rows, layout = stated_rows(request)
        served = await endpoint.infer(
            decode, n_rows=n_rows, layout=layout, deadline=deadline, request_id=account.request_id
        )
        encoding = self._clock()
        response = _response(request, version, names, served)
        ended = self._clock()
        timing = Timing(
            total_s=ended - started,
            queue_s=served.queue_s,
            compute_input_s=served.decode_s,
            compute_infer_s=served.compute_s,
            compute_output_s=ended - encoding,
        )
        now_ms = round(self._now() * 1000)
        version.statistics.add_success(timing, n_rows=served.n_rows, leads=served.leads, now_ms=now_ms)
        account.answered(timing, n_rows=served.n_rows, n_flagged=served.n_flagged)
        return response

    def _status(self, error: BaseException, deadline: float | None) -> grpc.StatusCode:
        # gRPC cancels a call whose deadline passes: to its caller that is no cancellation.
        late = deadline is not None and self._clock() >= deadline - _TRANSIT_S
        if isinstance(error, asyncio.CancelledError) and late:
            return grpc.StatusCode.DEADLINE_EXCEEDED
        return status_code(error)


def _at_once(method: Callable[[Any], Message]) -> Callable[[Any, float | None], Awaitable[Message]]:
    async def answer(request: Message, _: float | None) -> Message:
        return method(request)

    return answer


def _response(
    request: pb.ModelInferRequest, version: ServedVersion, names: tuple[str, ...], served: Served
) -> pb.ModelInferResponse:
    response = pb.ModelInferResponse(model_name=version.model, model_version=version.version, id=request.id)
    if served.n_flagged is not None:
        response.parameters["guard_n_flagged"].int64_param = served.n_flagged
    add_outputs(response, {name: served.tensors[name] for name in names})
    return response
