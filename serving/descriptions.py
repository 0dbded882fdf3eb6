"""What a front says of itself, of the upstream and of the model: the upstream's word, with the guard's part."""

from collections.abc import Iterable, Mapping
from dataclasses import replace
from typing import Any, TypeVar

import grpc
from google.protobuf.message import DecodeError, Message

from serving._pb import open_inference_pb2 as pb
from serving.alongside import Alongside
from serving.errors import NotFoundError, UpstreamError
from serving.exchange import add_to_config, add_to_metadata
from serving.servicer import SERVICE
from serving.transport import parse
from serving.upstream import Answer, Caller, Reply, Upstream

__all__ = ["Descriptions", "ask", "check_name"]

R = TypeVar("R", bound=Message)
Q = TypeVar("Q", pb.ModelReadyRequest, pb.ModelMetadataRequest, pb.ModelConfigRequest, pb.ModelStatisticsRequest)
"""Requests that name a model."""

_NOT_READY = Reply(content=b"")
"""ServerReadyResponse and ModelReadyResponse alike: ready is false where it is not said."""

_AWAY = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)


class Descriptions:
    """Answers every call of the protocol that is no inference; used from one event loop.

    Args:
        upstream: Runs the model.
        guarded: Guards it; may be replaced.
    """

    def __init__(self, upstream: Upstream, guarded: Alongside) -> None:
        self.guarded = guarded
        self._upstream = upstream
        self._theirs = guarded.theirs or guarded.name

    def answers(self) -> Mapping[str, Answer]:
        """Return every call by its name in the protocol."""
        return {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
        }

    async def server_live(self, _: bytes, __: Caller) -> Reply:
        """Say that this server runs, whatever the upstream does: who asks would restart this one."""
        return Reply(content=pb.ServerLiveResponse(live=True).SerializeToString())

    async def server_ready(self, content: bytes, caller: Caller) -> Reply:
        """Say whether both servers take requests."""
        request = parse(pb.ServerReadyRequest, content)
        return await self._ready("ServerReady", request, pb.ServerReadyResponse, caller)

    async def model_ready(self, content: bytes, caller: Caller) -> Reply:
        """Say whether both servers take requests for a model; one that is not guarded here takes none."""
        request = parse(pb.ModelReadyRequest, content)
        if request.name != self.guarded.name:
            return _NOT_READY
        return await self._ready("ModelReady", self._for_theirs(request), pb.ModelReadyResponse, caller)

    async def model_metadata(self, content: bytes, caller: Caller) -> Reply:
        """Say what the upstream says of the model, and which outputs the guard adds."""
        request = self._for_theirs(parse(pb.ModelMetadataRequest, content))
        reply, response = await ask(self._upstream, "ModelMetadata", request, pb.ModelMetadataResponse, caller)
        response.name = self.guarded.name
        add_to_metadata(response, self.guarded.added, self.guarded.withheld)
        return replace(reply, content=response.SerializeToString())

    async def model_config(self, content: bytes, caller: Caller) -> Reply:
        """Say the same in Triton's terms."""
        request = self._for_theirs(parse(pb.ModelConfigRequest, content))
        reply, response = await ask(self._upstream, "ModelConfig", request, pb.ModelConfigResponse, caller)
        response.config.name = self.guarded.name
        add_to_config(response.config, self.guarded.added, self.guarded.withheld)
        return replace(reply, content=response.SerializeToString())

    async def model_statistics(self, content: bytes, caller: Caller) -> Reply:
        """Say what the upstream counted; no name means every model."""
        request = parse(pb.ModelStatisticsRequest, content)
        request = self._for_theirs(request) if request.name else request
        reply, response = await ask(self._upstream, "ModelStatistics", request, pb.ModelStatisticsResponse, caller)
        return replace(reply, content=self._renamed(response, response.model_stats))

    async def repository_index(self, content: bytes, caller: Caller) -> Reply:
        """List what the upstream lists."""
        request = parse(pb.RepositoryIndexRequest, content)
        reply, response = await ask(self._upstream, "RepositoryIndex", request, pb.RepositoryIndexResponse, caller)
        return replace(reply, content=self._renamed(response, response.models))

    async def _ready(self, method: str, request: Message, response: type[R], caller: Caller) -> Reply:
        try:
            reply, theirs = await ask(self._upstream, method, request, response, caller)
        except UpstreamError as error:
            if error.code not in _AWAY:
                raise
            return _NOT_READY
        return _NOT_READY if self.guarded.stopping else replace(reply, content=theirs.SerializeToString())

    def _for_theirs(self, request: Q) -> Q:
        check_name(request.name, self.guarded)
        request.name = self._theirs
        return request

    def _renamed(self, response: Message, entries: Iterable[Any]) -> bytes:
        for entry in entries:
            if entry.name == self._theirs:
                entry.name = self.guarded.name
        return response.SerializeToString()


def check_name(name: str, guarded: Alongside) -> None:
    """Refuse a model that is not the guarded one.

    Raises:
        NotFoundError: It is another.
    """
    if name != guarded.name:
        raise NotFoundError(f"model {name!r} is not guarded here; {guarded.name!r} is")


async def ask(upstream: Upstream, name: str, request: Message, response: type[R], caller: Caller) -> tuple[Reply, R]:
    """Return the upstream's answer to a call of the protocol, as it came and as a message.

    Raises:
        UpstreamError: It was refused, there is no upstream, or its answer is no such message.
    """
    reply = await upstream.ask(f"/{SERVICE}/{name}", request.SerializeToString(), caller)
    try:
        return reply, response.FromString(reply.content)
    except DecodeError as error:
        words = f"the upstream's answer is no {response.DESCRIPTOR.full_name}"
        raise UpstreamError(grpc.StatusCode.INTERNAL, words) from error
