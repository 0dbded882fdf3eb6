"""The guard within somebody else's server, whose servicer and messages are those of an unmodified package."""

import asyncio
import threading
from concurrent.futures import Future
from contextlib import contextmanager

import grpc
import numpy as np
import pytest
from bundles import CLEAN, CORRECTED, TRIGGERED
from prometheus_client import CollectorRegistry
from servers import SERVICE, TIMEOUT_S, GatedModel, infer_request, tensors, tiny_guard
from tritonclient.grpc import InferenceServerClient, InferInput, service_pb2, service_pb2_grpc

from guard.errors import ModelError
from serving._pb import open_inference_pb2 as pb
from serving.config import Fail, Limits, OnFlag
from serving.interceptor import GuardInterceptor

MIXED = np.concatenate([CLEAN, TRIGGERED])
Code = grpc.StatusCode


class Theirs(service_pb2_grpc.GRPCInferenceServiceServicer):
    """Somebody else's servicer of y = relu(x), under any name but `sad`."""

    def __init__(self):
        self.asked = []

    async def ServerLive(self, request, context):
        return service_pb2.ServerLiveResponse(live=True)

    async def ModelInfer(self, request, context):
        assert isinstance(request, service_pb2.ModelInferRequest)
        self.asked.append(request)
        if request.id == "sad":
            await context.abort(Code.RESOURCE_EXHAUSTED, "so sad")
        if request.id == "broken":
            raise ZeroDivisionError
        await context.send_initial_metadata((("theirs", "yes"),))
        rows = np.frombuffer(request.raw_input_contents[0], "<f4")
        output = {"name": "y", "datatype": "FP32", "shape": request.inputs[0].shape}
        return service_pb2.ModelInferResponse(
            model_name=request.model_name, outputs=[output], raw_output_contents=[np.maximum(rows, 0).tobytes()]
        )

    async def ModelStreamInfer(self, requests, context):
        async for request in requests:
            assert isinstance(request, service_pb2.ModelInferRequest)
            yield service_pb2.ModelStreamInferResponse(infer_response={"model_name": request.model_name})


class Outdated(service_pb2_grpc.GRPCInferenceServiceServicer):
    """One whose methods block."""

    def ModelInfer(self, request, context):
        return service_pb2.ModelInferResponse()


@contextmanager
def theirs(guard=None, *, servicer=None, **options):
    """Yield a channel to a server of theirs with the guard in it, its servicer and the metrics."""
    started, stop, registry = Future(), threading.Event(), CollectorRegistry()
    servicer = servicer or Theirs()

    async def main():
        interceptor = GuardInterceptor(guard or tiny_guard(), registry=registry, **options)
        server = grpc.aio.server(interceptors=[interceptor])
        service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(servicer, server)
        port = server.add_insecure_port("127.0.0.1:0")
        await server.start()
        started.set_result(port)
        await asyncio.to_thread(stop.wait)
        await server.stop(None)
        await interceptor.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),))
    thread.start()
    try:
        address = f"127.0.0.1:{started.result(TIMEOUT_S)}"
        with grpc.insecure_channel(address) as channel:
            yield Seen(channel, address, servicer, registry)
    finally:
        stop.set()
        thread.join(TIMEOUT_S)


class Seen:
    """A server of theirs, seen from a client."""

    def __init__(self, channel, address, servicer, registry):
        self.channel, self.address, self.servicer, self.registry = channel, address, servicer, registry

    def infer(self, rows, **fields):
        call = self.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        content = call(infer_request(rows, **fields).SerializeToString(), timeout=TIMEOUT_S)
        return pb.ModelInferResponse.FromString(content)

    def refuses(self, rows, **fields):
        with pytest.raises(grpc.RpcError) as caught:
            self.infer(rows, **fields)
        return caught.value.code(), caught.value.details()

    def sample(self, name, **labels):
        return self.registry.get_sample_value(name, {"model": "tiny", **labels})


def test_an_unmodified_client_of_an_unmodified_server_gets_corrected_answers():
    with theirs() as server, InferenceServerClient(server.address) as client:
        tensor = InferInput("x", [2, 3], "FP32")
        tensor.set_data_from_numpy(MIXED)
        answer = client.infer("tiny", [tensor])
        assert answer.as_numpy("y").tolist() == [*CLEAN.tolist(), *CORRECTED.tolist()]
        assert answer.as_numpy("guard_flagged").tolist() == [False, True]
        assert client.is_server_live()


def test_other_models_are_left_alone_to_the_byte():
    with theirs(model_name="tiny") as server:
        answer = server.infer(MIXED, model="other")
        assert tensors(answer) == {"y": MIXED.tolist()}
        assert server.servicer.asked[0].model_name == "other"
        for name in ("tiny", ""):
            assert tensors(server.infer(MIXED, model=name))["guard_flagged"] == [False, True]


def test_every_model_is_guarded_where_none_is_named():
    with theirs() as server:
        answer = server.infer(MIXED, model="whatever")
        assert (answer.model_name, tensors(answer)["guard_flagged"]) == ("whatever", [False, True])


def test_what_the_server_aborts_with_or_raises_is_what_clients_get():
    with theirs() as server:
        assert server.refuses(CLEAN, id="sad") == (Code.RESOURCE_EXHAUSTED, "so sad")
        assert server.refuses(CLEAN, id="broken")[0] == Code.UNKNOWN
        assert server.sample("guard_requests_total", status="UNKNOWN") == 2
        assert server.sample("guard_failures_total", stage="judge") == 0


def test_a_bad_or_rejected_request_is_refused_in_the_guards_words():
    with theirs(on_flag=OnFlag.REJECT, limits=Limits(max_rows=4)) as server:
        assert server.refuses([[np.nan, 0, 0]])[0] == Code.INVALID_ARGUMENT
        assert server.refuses(np.zeros((5, 3)))[0] == Code.INVALID_ARGUMENT
        assert server.servicer.asked == []
        assert server.refuses(MIXED)[0] == Code.FAILED_PRECONDITION
        assert tensors(server.infer(CLEAN))["guard_flagged"] == [False]


@pytest.mark.parametrize("fail", Fail)
def test_a_guard_that_fails_fails_as_it_is_told_to(fail):
    guard = tiny_guard(bounded=GatedModel(error=ModelError("secret")))
    with theirs(guard, fail=fail) as server:
        if fail is Fail.OPEN:
            assert server.infer(MIXED).parameters["guard_failed"].bool_param
        else:
            code, words = server.refuses(MIXED)
            assert (code, "secret" in words) == (Code.INTERNAL, False)
        assert server.sample("guard_failures_total", stage="judge") == 1


def test_bytes_that_are_no_message_do_not_reach_the_server():
    with theirs(model_name="tiny") as server:
        call = server.channel.unary_unary(f"/{SERVICE}/ModelInfer")
        with pytest.raises(grpc.RpcError) as caught:
            call(b"\xff", timeout=TIMEOUT_S)
        assert caught.value.code() == Code.INVALID_ARGUMENT
        assert server.servicer.asked == []


def test_a_server_whose_methods_block_is_refused():
    with theirs(servicer=Outdated()) as server:
        assert server.refuses(CLEAN)[0] == Code.INTERNAL


def test_a_stream_carries_other_models_and_is_no_way_round():
    with theirs(model_name="tiny") as server:
        stream = server.channel.stream_stream(f"/{SERVICE}/ModelStreamInfer")
        requests = [infer_request(CLEAN, model=name).SerializeToString() for name in ("a", "b", "tiny", "c")]
        answers = stream(iter(requests), timeout=TIMEOUT_S)
        for name in ("a", "b"):
            assert pb.ModelStreamInferResponse.FromString(next(answers)).infer_response.model_name == name
        with pytest.raises(grpc.RpcError) as caught:
            next(answers)
        told = "the model is guarded, and not in a stream; send it to ModelInfer"
        assert (caught.value.code(), caught.value.details()) == (Code.UNIMPLEMENTED, told)
