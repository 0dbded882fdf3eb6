"""What a front answers in bytes, as calls on messages: for HTTP, which has no bytes of gRPC's."""

from collections.abc import Mapping
from functools import partial

from google.protobuf.message import Message

from serving._pb import open_inference_pb2 as pb
from serving.servicer import Rpc
from serving.upstream import Answer, Caller

__all__ = ["rpcs_of"]


def rpcs_of(answers: Mapping[str, Answer]) -> Mapping[str, Rpc]:
    """Return calls on messages.

    Args:
        answers: What answers bytes, by the name of the call.
    """
    return {name: Rpc(getattr(pb, f"{name}Request"), partial(_call, name, answers[name])) for name in answers}


async def _call(name: str, answer: Answer, request: Message, deadline: float | None) -> Message:
    reply = await answer(request.SerializeToString(), Caller(deadline=deadline))
    response: type[Message] = getattr(pb, f"{name}Response")
    return response.FromString(reply.content)
