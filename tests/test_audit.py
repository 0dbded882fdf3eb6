"""The audit file: a record per flagged row, whatever becomes of the answer, and never at the answer's cost."""

import base64
import hashlib
import json
import threading
from contextlib import suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED, manifest
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for
from upstreams import plain
from witnessed import bright, bundle

from guard import Guard
from guard.manifest import write_manifest
from guard.types import Verdict
from serving.audit import Audit, open_audit
from serving.audit_record import as_line
from serving.config import AuditSettings, OnFlag
from serving.errors import StartError
from serving.events import RowsFlagged
from serving.rotation import RotatingFile

MIXED = np.concatenate([CLEAN, TRIGGERED, 2 * TRIGGERED])
LOST = "guard_audit_records_total"


@pytest.fixture
def settings(tmp_path):
    return AuditSettings(path=tmp_path / "audit.jsonl")


def records(settings):
    return [json.loads(line) for line in settings.path.read_text().splitlines()]


def served(settings, *rows, guard=None, **config):
    """Return the records of a server that was asked about rows, and the server's counters."""
    with live(guard, audit=settings, **config) as server:
        for number, some in enumerate(rows):
            with suppress(grpc.RpcError):
                server.call("ModelInfer", infer_request(some, id=f"request {number}"))
    counts = {name: server.sample(LOST, outcome=name) for name in ("complete", "without_evidence", "lost")}
    return records(settings), counts


def test_each_flagged_row_has_a_record_of_what_was_found(settings):
    (first, second), counts = served(settings, CLEAN, MIXED)
    assert counts == {"complete": 2, "without_evidence": 0, "lost": 0}
    assert datetime.fromisoformat(first.pop("time")).tzinfo is not None
    assert first == {
        "request_id": "request_1",
        "model": "tiny",
        "version": "1",
        "bundle": hashlib.sha256(write_manifest(manifest())).hexdigest(),
        "row": 1,
        "inputs_sha256": hashlib.sha256(TRIGGERED.tobytes()).hexdigest(),
        "predicted_class": 0,
        "corrected_class": 1,
        "p_value": pytest.approx(1 / 201),
        "score": 5.0,
        "evidence": None,
    }
    assert (second["row"], second["inputs_sha256"]) == (2, hashlib.sha256((2 * TRIGGERED).tobytes()).hexdigest())


@pytest.mark.parametrize("mode", OnFlag)
def test_every_mode_writes_the_same_records(settings, mode):
    (first, second), _ = served(settings, MIXED, on_flag=mode)
    assert (first["row"], second["row"], first["corrected_class"]) == (1, 2, 1)


def test_the_inputs_are_written_only_if_asked_for(settings):
    (first, _), _ = served(replace(settings, inputs=True), MIXED)
    raw = base64.b64decode(first["inputs"]["x"].pop("raw"))
    assert np.frombuffer(raw, "<f4").tolist() == TRIGGERED[0].tolist()
    assert first["inputs"] == {"x": {"datatype": "FP32", "shape": [1, 3]}}


def witnessed(n_rows=1):
    guard = Guard.from_bundle(bundle(), threads=1)
    inputs = {"x": np.concatenate([bright(5.0)] * n_rows)}
    return RowsFlagged(
        request_id="7", model="tiny", version="1", bundle="0" * 64, inputs=inputs, verdict=guard(inputs)
    )  # fmt: skip


class Told:
    """Counts what an audit says."""

    def __init__(self):
        self.outcomes, self.changed = [], threading.Condition()

    def __call__(self, model, outcome):
        with self.changed:
            self.outcomes.append(outcome)
            self.changed.notify_all()

    def wait(self, n):
        with self.changed:
            assert self.changed.wait_for(lambda: len(self.outcomes) >= n, TIMEOUT_S)
        return self.outcomes


def test_evidence_names_the_numbers_and_channels_that_went_furthest(settings):
    told = Told()
    audit = open_audit(settings, count=told)
    audit(witnessed())
    assert told.wait(1) == ["complete"]
    audit.close(TIMEOUT_S)
    (record,) = records(settings)
    evidence = record["evidence"]
    assert evidence["channels"] == [{"site": "a", "channel": 1, "excess": 2.0}]
    assert evidence["place"] == [(2 + 0.5) / 4, (3 + 0.5) / 4]
    assert [number["number"] for number in evidence["numbers"]][:1] == ["peak"]
    assert evidence["raised_by"] in ("profile", "head")


def test_evidence_takes_no_more_than_its_share_of_time_and_the_records_go_on(settings):
    told = Told()
    now = [0.0]

    def clock():
        now[0] += 4.0
        return now[0]

    file = RotatingFile(settings.path, max_bytes=settings.max_bytes, n_files=2)
    audit = Audit(file, settings, count=told, clock=clock)
    audit(witnessed(40))
    outcomes = told.wait(40)
    audit.close(TIMEOUT_S)
    # Each takes 4 s of the clock, of which 10 s were saved up and a tenth comes back.
    n_complete = outcomes.count("complete")
    assert 3 <= n_complete < 10
    assert [record["left_out"] for record in records(settings) if not record["evidence"]] == [["evidence"]] * (
        40 - n_complete
    )


def verdict(n, inputs):
    flagged = np.ones(n, dtype=bool)
    zeros = np.zeros(n)
    return Verdict(
        predicted_class=np.zeros(n, dtype=np.int64), corrected_class=np.ones(n, dtype=np.int64), p_value=zeros,
        divergence=zeros, score=np.full(n, np.inf), flagged=flagged, corrected=flagged, outputs=inputs,
    )  # fmt: skip


def many(n, width=3):
    inputs = np.zeros((n, width), dtype=np.float32)
    return RowsFlagged(
        request_id="7", model="tiny", version="1", bundle="0" * 64, inputs={"x": inputs}, verdict=verdict(n, inputs)
    )  # fmt: skip


class Stuck:
    """A file whose disk does not answer until it is let."""

    def __init__(self):
        self.answers, self.lines = threading.Event(), []

    def write(self, line):
        assert self.answers.wait(TIMEOUT_S)
        self.lines.append(line)

    def close(self):
        pass


def test_a_disk_that_does_not_answer_holds_nobody_up_and_what_is_too_much_is_counted_as_lost(settings, caplog):
    told, disk = Told(), Stuck()
    audit = Audit(disk, settings, count=told)
    for _ in range(5):
        audit(many(1024))
    assert told.outcomes == ["lost"] * 1024
    assert caplog.text.count("audit records are lost until further notice") == 1
    disk.answers.set()
    assert told.wait(5 * 1024).count("complete") == 4 * 1024
    audit.close(TIMEOUT_S)
    assert len(disk.lines) == 4 * 1024
    assert caplog.text.count("audit records are written again") == 1


def test_a_request_with_more_flagged_rows_than_may_wait_is_written_where_none_waits(settings):
    told, disk = Told(), Stuck()
    audit = Audit(disk, settings, count=told)
    disk.answers.set()
    audit(many(5000))
    assert told.wait(5000) == ["complete"] * 5000
    audit.close(TIMEOUT_S)


def test_what_cannot_be_written_down_raises_nothing_and_is_counted(settings):
    told = Told()
    audit = Audit(Stuck(), settings, count=told, now=lambda: float("inf"))
    audit(many(2))
    audit.close(TIMEOUT_S)
    assert told.outcomes == ["lost", "lost"]


def test_where_waiting_rows_take_too_much_memory_their_digests_are_kept_and_they_are_not(settings):
    told, disk = Told(), Stuck()
    audit = Audit(disk, settings, count=told)
    large = many(1, width=40 * 2**20)
    verdict = replace(large.verdict, evidence_of=lambda _: pytest.fail("evidence was gathered"))
    audit(large)
    audit(replace(large, verdict=verdict))
    disk.answers.set()
    assert told.wait(2) == ["complete", "without_evidence"]
    audit.close(TIMEOUT_S)
    found = [json.loads(line) for line in disk.lines]
    assert [record.get("left_out") for record in found] == [None, ["evidence"]]
    assert {record["inputs_sha256"] for record in found} == {hashlib.sha256(bytes(160 * 2**20)).hexdigest()}


def test_requests_that_share_a_run_have_records_of_their_own(settings):
    gate = GatedModel()
    gate.open.clear()
    with live(tiny_guard(original=gate), audit=settings, on_flag=OnFlag.REJECT) as server:
        ask = server.rpc("ModelInfer").future
        sent = [ask(infer_request(CLEAN), timeout=TIMEOUT_S)]
        assert gate.started.acquire(timeout=TIMEOUT_S)
        named = {"a": MIXED, "b": CLEAN, "c": 3 * TRIGGERED}
        sent += [ask(infer_request(rows, id=name), timeout=TIMEOUT_S) for name, rows in named.items()]
        wait_for(lambda: server.sample("guard_requests_in_flight") == 4)
        gate.open.set()
        wait_for(lambda: all(future.done() for future in sent))
    found = {(record["request_id"], record["row"]): record["inputs_sha256"] for record in records(settings)}
    assert found.keys() == {("a", 1), ("a", 2), ("c", 0)}
    assert found["c", 0] == hashlib.sha256((3 * TRIGGERED).tobytes()).hexdigest()


def test_a_caller_that_leaves_while_its_rows_run_is_in_the_records(settings):
    gate = GatedModel()
    gate.open.clear()
    with live(tiny_guard(original=gate), audit=settings) as server:
        leaver = server.rpc("ModelInfer").future(infer_request(TRIGGERED, id="leaver"), timeout=TIMEOUT_S)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        leaver.cancel()
        gate.open.set()
        wait_for(lambda: server.sample("guard_rows_total") == 1)
    assert [record["request_id"] for record in records(settings)] == ["leaver"]


def test_in_front_of_an_upstream_the_records_are_the_same(settings):
    with plain() as upstream:
        (first, second), counts = served(settings, MIXED, upstream=upstream.settings)
    assert (first["request_id"], first["row"], second["row"], first["predicted_class"]) == ("request_0", 1, 2, 0)
    assert first["inputs_sha256"] == hashlib.sha256(TRIGGERED.tobytes()).hexdigest()
    assert counts["complete"] == 2


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full")
def test_a_full_disk_fails_no_answer_is_counted_and_said_once(caplog):
    with live(audit=AuditSettings(path=Path("/dev/full"))) as server:
        for _ in range(3):
            assert tensors(server.infer(MIXED))["guard_flagged"] == [False, True, True]
    assert server.sample(LOST, outcome="lost") == 6
    assert caplog.text.count("/dev/full cannot be written: No space left on device") == 1


def test_records_that_wait_are_written_before_the_server_ends(settings):
    found, _ = served(settings, *[MIXED] * 50)
    assert len(found) == 100


def test_full_files_are_put_aside_and_every_line_of_each_is_a_record(settings):
    settings = replace(settings, max_bytes=4096, n_files=3)
    found, _ = served(settings, *[MIXED] * 20)
    older = [settings.path.with_name(f"audit.jsonl.{i}") for i in (1, 2)]
    assert all(path.stat().st_size <= 4096 for path in (settings.path, *older))
    assert all(json.loads(line)["model"] == "tiny" for path in older for line in path.read_text().splitlines())
    assert not settings.path.with_name("audit.jsonl.3").exists()
    assert found[-1]["request_id"] == "request_19"


def test_a_record_that_would_be_too_long_leaves_out_inputs_first():
    record = {"row": 1, "evidence": {"e": "e" * 50}, "inputs": "i" * 50}
    assert json.loads(as_line(record, max_bytes=500)) == record
    short = json.loads(as_line(record, max_bytes=130))
    assert short == {**record, "inputs": None, "left_out": ["inputs"]}
    shortest = json.loads(as_line(record, max_bytes=80))
    assert shortest == {"row": 1, "evidence": None, "inputs": None, "left_out": ["inputs", "evidence"]}


@pytest.mark.parametrize(("name", "words"), [("no/audit", "No such file"), (".", "Is a directory")])
def test_a_file_that_cannot_be_written_is_said_before_anything_listens(tmp_path, name, words):
    with pytest.raises(StartError, match=words), live(audit=AuditSettings(path=tmp_path / name)):
        pytest.fail("it listens")
