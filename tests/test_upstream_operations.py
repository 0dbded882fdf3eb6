"""In front of another server: its health told, its bundle replaced, its flagged rows written down."""

import json
import shutil

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED, bounded_model, tiny_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for
from upstreams import plain

from guard import Guard
from guard.bundle import MANIFEST
from guard.errors import BundleError
from serving.config import AuditSettings, Security
from serving.store import single_store

MIXED = np.concatenate([CLEAN, TRIGGERED])
SERVING, NOT_SERVING = health_pb2.HealthCheckResponse.SERVING, health_pb2.HealthCheckResponse.NOT_SERVING


def opened(folder):
    return Guard.load(folder, threads=1)


def health(server, name):
    check = health_pb2_grpc.HealthStub(server.channel).Check
    return check(health_pb2.HealthCheckRequest(service=name), timeout=TIMEOUT_S).status


def flags(server):
    return tensors(server.infer(MIXED))["guard_flagged"]


def test_health_of_the_model_follows_the_upstream_and_that_of_the_server_does_not():
    with plain() as upstream:
        settings = upstream.settings
    with live(upstream=settings) as server:
        assert (health(server, ""), health(server, "tiny")) == (SERVING, NOT_SERVING)
        for _ in range(2):
            with plain(upstream):
                wait_for(lambda: health(server, "tiny") == SERVING)
            wait_for(lambda: health(server, "tiny") == NOT_SERVING)
        assert health(server, "") == SERVING


def test_a_bundle_takes_anothers_place_and_what_was_begun_is_finished(tmp_path):
    bundle = tiny_bundle(tmp_path)
    stuck, store = GatedModel(cap=4), single_store(bundle, "tiny", opened)
    with plain() as upstream, live(tiny_guard(bounded=stuck), store=store, upstream=upstream.settings) as server:
        stuck.open.clear()
        begun = server.rpc("ModelInfer").future(infer_request(MIXED), timeout=TIMEOUT_S)
        assert stuck.started.acquire(timeout=TIMEOUT_S)
        replace_bundle(bundle, tmp_path / "new", cap=100.0)
        server.reload()
        assert flags(server) == [False, False]
        stuck.open.set()
        assert tensors(begun.result())["guard_flagged"] == [False, True]
        wait_for(lambda: server.sample("guard_requests_in_flight") == 0)


def replace_bundle(bundle, folder, *, cap):
    folder.mkdir()
    shutil.rmtree(bundle)
    tiny_bundle(folder, bounded=bounded_model(cap=cap)).rename(bundle)


def test_a_bad_bundle_takes_nobodys_place(tmp_path):
    bundle = tiny_bundle(tmp_path)
    store = single_store(bundle, "tiny", opened)
    with plain() as upstream, live(opened(bundle), store=store, upstream=upstream.settings) as server:
        (bundle / MANIFEST).write_text("{}")
        with pytest.raises(BundleError):
            server.reload()
        assert flags(server) == [False, True]


def test_flagged_rows_are_written_down_under_the_requests_name(tmp_path):
    audit = AuditSettings(path=tmp_path / "audit.jsonl")
    with plain() as upstream, live(upstream=upstream.settings, audit=audit) as server:
        server.call("ModelInfer", infer_request(MIXED, id="a-7"))
    (record,) = map(json.loads, audit.path.read_text().splitlines())
    assert (record["request_id"], record["row"]) == ("a-7", 1)


def test_a_token_for_this_server_is_not_shown_to_the_upstream(tmp_path):
    (tmp_path / "tokens").write_text("a-token-of-many-characters\n")
    sent = [("authorization", "Bearer a-token-of-many-characters"), ("tenant", "t")]
    security = Security(token_file=tmp_path / "tokens")
    with plain() as upstream, live(upstream=upstream.settings, security=security) as server:
        with pytest.raises(grpc.RpcError) as caught:
            server.infer(CLEAN)
        assert caught.value.code() == grpc.StatusCode.UNAUTHENTICATED
        server.infer(CLEAN, metadata=sent)
        assert len(upstream.requests()) == 1
        keys = {key for key, _ in upstream.metadata}
        assert "tenant" in keys
        assert "authorization" not in keys
