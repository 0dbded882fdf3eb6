"""Logs tell which requests were refused, failed or flagged, and nothing of what was in them."""

import io
import json
import logging
import threading

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED
from grpc._cython.cygrpc import ExecuteBatchError
from hypothesis import given, settings
from hypothesis import strategies as st
from servers import TIMEOUT_S, GatedModel, infer_request, live, tiny_guard, wait_for
from upstreams import plain

from guard.errors import ModelError
from serving._pb import open_inference_pb2 as pb
from serving.config import OnFlag
from serving.events import RequestEnded, request_id
from serving.logs import LogFormat, LogLevel, RequestLog, logging_to

MIXED = np.concatenate([CLEAN, TRIGGERED])


def logged(do, *, form=LogFormat.JSON, level=LogLevel.INFO):
    """Return what is written while something is done."""
    stream = io.StringIO()
    with logging_to(stream, program="guard-serve", form=form, level=level):
        do()
    return stream.getvalue()


def requests(text):
    lines = [json.loads(line) for line in text.splitlines()]
    return [line for line in lines if line["logger"] == "serving.requests"]


def ended(status="OK", **changes):
    return RequestEnded(**{
        "request_id": "7", "model": "tiny", "version": "1", "status": status, "error": None, "n_rows": 2,
        "n_flagged": 0, "ended": 0.0, "seconds": 0.25, "stages": {}, **changes,
    })  # fmt: skip


def talk(server):
    server.infer(CLEAN)
    server.call("ModelInfer", infer_request(MIXED, id="shop/17"))
    server.refuses(infer_request([[np.nan, 0, 0]], id="bad"))
    server.refuses(infer_request(CLEAN, model="somebody's", id="lost"))


def test_by_default_refused_and_flagged_requests_have_a_line_and_others_none():
    with live() as server:
        lines = requests(logged(lambda: talk(server)))
    told = [(line["request_id"], line["message"], line["status"], line.get("error")) for line in lines]
    assert told == [
        ("shop/17", "request flagged", "OK", None),
        ("bad", "request refused", "INVALID_ARGUMENT", "InputError"),
        ("lost", "request refused", "NOT_FOUND", "NotFoundError"),
    ]
    flagged, _, lost = lines
    assert (flagged["rows"], flagged["flagged"], flagged["model"], flagged["version"]) == (2, 1, "tiny", "1")
    assert flagged["milliseconds"] > 0
    assert (lost["model"], "version" in lost, "rows" in lost) == ("unknown", False, False)


def test_in_front_of_an_upstream_the_lines_are_the_same():
    with plain() as upstream, live(upstream=upstream.settings) as server:
        lines = requests(logged(lambda: talk(server)))
    told = [(line["request_id"], line["status"], line["model"], line.get("flagged")) for line in lines]
    assert told == [
        ("shop/17", "OK", "tiny", 1),
        ("bad", "INVALID_ARGUMENT", "tiny", None),
        ("lost", "NOT_FOUND", "unknown", None),
    ]


def test_at_debug_every_request_has_a_line_and_at_error_none_of_these():
    with live() as server:
        assert len(requests(logged(lambda: talk(server), level=LogLevel.DEBUG))) == 4
        assert logged(lambda: talk(server), level=LogLevel.ERROR) == ""


def test_a_request_that_fails_is_a_warning_and_its_incident_an_error():
    failing = tiny_guard(bounded=GatedModel(error=ModelError("no")))
    with live(failing) as server:
        text = logged(lambda: server.refuses(infer_request(CLEAN)))
    levels = {(line["logger"], line["level"]) for line in map(json.loads, text.splitlines())}
    assert levels == {("serving.requests", "warning"), ("serving.transport", "error")}


def test_text_is_one_line_with_the_same_fields():
    text = logged(lambda: RequestLog()(ended(n_flagged=1)), form=LogFormat.TEXT)
    fields = "request_id=7 model=tiny version=1 status=OK rows=2 flagged=1 milliseconds=250.0"
    assert text == f"guard-serve: INFO: request flagged {fields}\n"


def test_shadow_mode_does_not_tell_who_is_flagged_in_logs():
    with live(on_flag=OnFlag.SHADOW) as server:
        (line,) = requests(logged(lambda: server.infer(MIXED), level=LogLevel.DEBUG))
    assert "flagged" not in line


def test_a_flood_is_cut_and_what_was_left_out_is_counted():
    now = [0.0]
    log = RequestLog(clock=lambda: now[0])

    def flood():
        for _ in range(1000):
            log(ended("INVALID_ARGUMENT"))
        now[0] = 0.1
        for _ in range(5):
            log(ended("INVALID_ARGUMENT"))

    lines = requests(logged(flood))
    assert len(lines) == 202
    assert [line["left_out"] for line in lines if "left_out" in line] == [800]


def test_an_exception_stays_within_its_line_of_json():
    def fail():
        try:
            int("two\nlines")
        except ValueError:
            logging.getLogger("serving").exception("it failed")

    line = json.loads(logged(fail))
    assert (line["message"], line["level"]) == ("it failed", "error")
    assert "\nValueError: " in line["exception"]


class Stuck(io.StringIO):
    """A stream that nobody reads until it is let."""

    def __init__(self):
        super().__init__()
        self.entered, self.read = threading.Event(), threading.Event()

    def write(self, text):
        self.entered.set()
        assert self.read.wait(TIMEOUT_S)
        return super().write(text)


def test_lines_that_nobody_reads_hold_nobody_up_and_those_dropped_are_counted():
    stream, logger = Stuck(), logging.getLogger("serving")
    with logging_to(stream, program="guard-serve", form=LogFormat.TEXT, level=LogLevel.INFO):
        logger.info("first")
        assert stream.entered.wait(TIMEOUT_S)
        for _ in range(1500):
            logger.info("more")
        stream.read.set()
        wait_for(lambda: stream.getvalue().count("\n") == 1001)
        logger.info("last")
    lines = stream.getvalue().splitlines()
    assert lines[-2:] == [
        "guard-serve: WARNING: 500 log lines were dropped: they are not read", "guard-serve: INFO: last"
    ]  # fmt: skip


def test_a_stream_that_is_never_read_does_not_keep_the_program_from_ending():
    stream = Stuck()
    with logging_to(stream, program="guard-serve", form=LogFormat.TEXT, level=LogLevel.INFO):
        logging.getLogger("serving").info("first")
    assert stream.getvalue() == ""
    stream.read.set()


def test_when_it_ends_nothing_of_it_is_left():
    before = [logging.getLogger(name).level for name in ("", "guard", "serving")], logging.getLogger().handlers[:]
    logged(lambda: None, level=LogLevel.DEBUG)
    assert before == (
        [logging.getLogger(name).level for name in ("", "guard", "serving")], logging.getLogger().handlers,
    )  # fmt: skip


@given(st.text())
def test_an_id_can_neither_break_a_line_nor_fill_it(given_id):
    cleaned = request_id(given_id)
    assert 0 < len(cleaned) <= 64
    assert cleaned.isascii()
    assert not set(cleaned) & set(" \n\r\"'\\,=;|") - set("=")
    assert request_id(cleaned) == cleaned


def test_no_id_gets_a_new_one_each_time():
    assert request_id("") != request_id("")


@pytest.fixture(scope="module")
def server():
    with live() as running:
        yield running


MARKER = 13.0625
"""No number of milliseconds, which have three decimals; its bytes are 00 00 51 41."""


@settings(max_examples=40, deadline=None)
@given(
    rows=st.lists(st.lists(st.sampled_from([MARKER, 0.0, np.nan]), min_size=2, max_size=4), max_size=3),
    datatype=st.sampled_from(["FP32", "INT32", "BYTES", "marker"]),
    typed=st.booleans(),
    name=st.sampled_from(["x", "marker"]),
)
def test_nothing_of_what_a_client_sends_is_written(server, rows, datatype, typed, name):
    values = [value for row in rows for value in row]
    tensor = pb.ModelInferRequest.InferInputTensor(name=name, datatype=datatype, shape=[len(rows), 3])
    raw = [] if typed else [np.array(values, "<f4").tobytes() + b"marker"[: len(rows) * 3]]
    if typed:
        tensor.contents.fp32_contents.extend(values)
    request = pb.ModelInferRequest(model_name="tiny", inputs=[tensor], raw_input_contents=raw)
    request.parameters["marker"].string_param = "marker"

    def ask():
        try:
            server.call("ModelInfer", request)
        except grpc.RpcError:
            server.refuses(infer_request(CLEAN, model="marker", version="marker"))

    text = logged(ask, level=LogLevel.DEBUG) + logged(ask, form=LogFormat.TEXT, level=LogLevel.DEBUG)
    assert "request_id" in text
    assert not any(sign in text for sign in ("13.0625", "marker", "QA", "NaN", "nan"))


@pytest.mark.parametrize(("error", "told"), [(ExecuteBatchError, False), (RuntimeError, True)])
def test_an_answer_that_comes_just_after_its_deadline_is_no_error_of_the_server(error, told):
    def fail():
        logging.getLogger("grpc._cython.cygrpc").error("raised in core by servicer method", exc_info=error("batch"))

    assert ("raised in core" in logged(fail)) is told
