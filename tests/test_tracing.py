"""OpenTelemetry spans: one per request with its stages as children, within the caller's trace."""

import http.client
import json
import subprocess
import sys
from itertools import pairwise

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind, StatusCode
from rest_calls import infer_body
from servers import TIMEOUT_S, GatedModel, infer_request, live, tiny_guard

from guard.errors import ModelError
from serving.tracing import Tracing, open_tracing

MIXED = np.concatenate([CLEAN, TRIGGERED])
TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
NAME = "inference.GRPCInferenceService/ModelInfer"


def spans(ask, guard=None, **config):
    """Return the spans of a server that was asked: of requests, and of their stages."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    tracing = Tracing(provider)
    with live(guard, tracer=tracing, **config) as server:
        ask(server)
    tracing.close()
    found = exporter.get_finished_spans()
    return [span for span in found if span.name == NAME], [span for span in found if span.name != NAME]


def test_a_request_has_a_span_with_what_became_of_it_and_nothing_of_what_was_in_it():
    (span,), _ = spans(lambda server: server.call("ModelInfer", infer_request(MIXED, id="a-7")))
    assert (span.kind, span.parent, span.status.status_code) == (SpanKind.SERVER, None, StatusCode.UNSET)
    assert dict(span.attributes) == {
        "rpc.system": "grpc",
        "rpc.service": "inference.GRPCInferenceService",
        "rpc.method": "ModelInfer",
        "rpc.grpc.status_code": 0,
        "guard.request_id": "a-7",
        "guard.model": "tiny",
        "guard.version": "1",
        "guard.rows": 2,
        "guard.flagged_rows": 1,
    }


def test_its_stages_are_its_children_one_after_the_other_within_it():
    (span,), stages = spans(lambda server: server.infer(MIXED))
    assert [stage.name for stage in stages] == ["queue", "decode", "compute", "encode"]
    assert {stage.parent.span_id for stage in stages} == {span.context.span_id}
    assert stages[0].start_time == span.start_time
    assert all(earlier.end_time <= later.start_time for earlier, later in pairwise(stages))
    assert stages[-1].end_time <= span.end_time + 1000  # the clocks' rounding


def test_the_callers_trace_goes_on_and_ends_with_its_call():
    def ask(server):
        server.infer(CLEAN, metadata=[("traceparent", f"00-{TRACE}-{PARENT}-01")])
        server.infer(CLEAN)

    (first, second), _ = spans(ask)
    assert (f"{first.context.trace_id:032x}", f"{first.parent.span_id:016x}") == (TRACE, PARENT)
    assert second.parent is None
    assert second.context.trace_id != first.context.trace_id


def test_over_rest_too_and_no_request_of_a_connection_goes_on_with_the_trace_of_the_one_before():
    def ask(server):
        connection = http.client.HTTPConnection("127.0.0.1", server.running.rest_port, timeout=TIMEOUT_S)
        for headers in ({"Traceparent": f"00-{TRACE}-{PARENT}-01"}, {}):
            connection.request("POST", "/v2/models/tiny/infer", json.dumps(infer_body(CLEAN.tolist())), headers)
            assert connection.getresponse().read()
        connection.close()

    (first, second), _ = spans(ask, rest_port=0)
    assert f"{first.context.trace_id:032x}" == TRACE
    assert second.parent is None


@pytest.mark.parametrize("value", ["", "00", f"00-{'0' * 32}-{PARENT}-01", f"ff-{TRACE}-{PARENT}-01", "x" * 4000])
def test_a_traceparent_that_is_none_begins_a_new_trace(value):
    (span,), _ = spans(lambda server: server.infer(CLEAN, metadata=[("traceparent", value)]))
    assert span.parent is None


def test_only_the_servers_faults_are_errors():
    (refused,), stages = spans(lambda server: server.refuses(infer_request(CLEAN, model="no")))
    assert (refused.status.status_code, refused.attributes["error.type"]) == (StatusCode.UNSET, "NotFoundError")
    assert stages == []
    failing = tiny_guard(bounded=GatedModel(error=ModelError("no")))
    (failed,), _ = spans(lambda server: server.refuses(infer_request(CLEAN)), failing)
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, "ModelError")
    assert failed.attributes["rpc.grpc.status_code"] == grpc.StatusCode.INTERNAL.value[0]


def test_a_collector_that_is_not_there_disturbs_no_answer():
    tracing = open_tracing("http://127.0.0.1:9")
    with live(tracer=tracing) as server:
        assert server.infer(CLEAN).model_name == "tiny"
    tracing.close()


def run(*arguments, before=""):
    code = f"{before}\nimport sys; from serving.__main__ import main; sys.exit(main(sys.argv[1:]))"
    return subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False)


def test_without_the_package_the_flag_says_what_to_install():
    done = run("bundle", "--otlp-endpoint", "http://h:1", before="import sys; sys.modules['opentelemetry'] = None")
    said = "guard-serve: error: --otlp-endpoint needs opentelemetry; pip install 'trigger-guard[tracing]'\n"
    assert (done.returncode, done.stderr) == (2, said)


def test_an_endpoint_that_is_no_address_is_said():
    done = run("bundle", "--otlp-endpoint", "collector:4317")
    assert done.returncode == 2
    assert "write it as in http://127.0.0.1:4317" in done.stderr
