"""Bearer tokens: without one nothing is answered but whether the server runs."""

import urllib.error
import urllib.request

import grpc
import pytest
from bundles import CLEAN
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from rest_calls import infer_body, post_infer, rest
from servers import TIMEOUT_S, infer_request, live, tensors
from upstreams import plain

from serving.config import Security
from serving.errors import StartError
from serving.tokens import Tokens

Code = grpc.StatusCode
TOKEN, OTHER = "first-token-0123456789", "second+token/0123456789=="


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(f"# of the web shop\n{TOKEN}\n\n  {OTHER}\r\n")
    return path


@pytest.fixture(scope="module")
def server(path):
    with live(security=Security(token_file=path)) as running:
        yield running


def bearing(token):
    return [("authorization", f"Bearer {token}")]


@pytest.mark.parametrize("token", [TOKEN, OTHER])
def test_any_token_of_the_file_lets_in(server, token):
    assert tensors(server.infer(CLEAN, metadata=bearing(token)))["y"] == CLEAN.tolist()


WRONG = [None, "", "Bearer", "Bearer ", f"Basic {TOKEN}", TOKEN, f"Bearer {TOKEN[:-1]}", f"Bearer {TOKEN}x",
         f"Bearer {TOKEN} {TOKEN}", "Bearer # of the web shop"]  # fmt: skip


@pytest.mark.parametrize("value", WRONG)
def test_without_a_valid_token_a_call_is_unauthenticated(server, value):
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(CLEAN, metadata=[] if value is None else [("authorization", value)])
    assert caught.value.code() == Code.UNAUTHENTICATED
    assert TOKEN not in caught.value.details()


def test_two_headers_let_nobody_in(server):
    with pytest.raises(grpc.RpcError) as caught:
        server.infer(CLEAN, metadata=[*bearing(TOKEN), *bearing(TOKEN)])
    assert caught.value.code() == Code.UNAUTHENTICATED


def test_probes_need_no_token_and_everything_else_does(server):
    assert server.call("ServerLive").live
    assert server.call("ServerReady").ready
    health = health_pb2_grpc.HealthStub(server.channel)
    answer = health.Check(health_pb2.HealthCheckRequest(service="tiny"), timeout=TIMEOUT_S)
    assert answer.status == health_pb2.HealthCheckResponse.SERVING
    for name in ("ModelReady", "ServerMetadata", "ModelMetadata", "ModelStatistics", "RepositoryIndex"):
        assert server.refuses(None, name)[0] == Code.UNAUTHENTICATED
    question = reflection_pb2.ServerReflectionRequest(list_services="")
    with pytest.raises(grpc.RpcError) as caught:
        list(reflection_pb2_grpc.ServerReflectionStub(server.channel).ServerReflectionInfo(iter([question]), timeout=9))
    assert caught.value.code() == Code.UNAUTHENTICATED


def scrape(server, **headers):
    url = f"http://127.0.0.1:{server.running.metrics_port}/metrics"
    with urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_S) as answer:
        return answer.read().decode()


def test_metrics_need_a_token_too_and_count_who_had_none(server):
    server.refuses(infer_request(CLEAN))
    with pytest.raises(urllib.error.HTTPError, match="401") as caught:
        scrape(server)
    caught.value.close()
    found = scrape(server, Authorization=f"bearer {TOKEN}")
    assert 'guard_requests_total{model="unknown",status="UNAUTHENTICATED"}' in found


def test_rest_needs_a_token_but_for_probes(path):
    with live(security=Security(token_file=path), rest_port=0) as server:
        for probe in ("/v2/health/live", "/v2/health/ready"):
            assert rest(server, "GET", probe).status == 200
        for address in ("/v2", "/v2/models/tiny", "/v2/models/tiny/ready", "/no/such", "/v2/health/live/"):
            answer = rest(server, "GET", address)
            assert (answer.status, "no valid token" in answer.json["error"]) == (401, True)
        assert post_infer(server, infer_body(CLEAN.tolist())).status == 401
        given = {"Authorization": f"Bearer {TOKEN}"}
        assert post_infer(server, infer_body(CLEAN.tolist()), headers=given).status == 200
        assert server.sample("guard_requests_total", model="unknown", status="UNAUTHENTICATED") == 6


def test_a_token_goes_no_further_than_this_server(path):
    with plain() as upstream, live(upstream=upstream.settings, security=Security(token_file=path)) as server:
        assert server.infer(CLEAN, metadata=[*bearing(TOKEN), ("of-the-client", "1")]).model_name == "tiny"
        keys = [key for key, _ in upstream.metadata]
    assert "of-the-client" in keys
    assert "authorization" not in keys


def test_tokens_follow_their_file_and_a_bad_file_changes_nothing(tmp_path, caplog):
    path = tmp_path / "tokens"
    path.write_text(TOKEN)
    tokens = Tokens(path)
    assert tokens.authorised(f"Bearer {TOKEN}")
    path.write_text(OTHER)
    assert [tokens.authorised(f"Bearer {token}") for token in (TOKEN, OTHER)] == [False, True]
    path.write_text("short")
    assert tokens.authorised(f"Bearer {OTHER}")
    assert caplog.text.count("line 1") == 1
    assert "short" not in caplog.text


def test_nothing_else_is_let_in(path):
    tokens = Tokens(path)

    @given(st.one_of(st.none(), st.text(), st.binary(), st.text().map("Bearer {}".format)))
    def nothing_else(header):
        assert not tokens.authorised(header)

    nothing_else()
    assert tokens.authorised(f"BEARER  {TOKEN}".encode())


@pytest.mark.parametrize(("content", "words"), {
    "\n# none\n": "holds no token", f"{TOKEN}\nshort\n": "line 2 of .* is no token",
    "nineteen characters": "line 1 of .* is no token", "tökens-of-other-letters": "line 1",
}.items())  # fmt: skip
def test_a_file_without_usable_tokens_is_said_without_them(tmp_path, content, words):
    path = tmp_path / "tokens"
    path.write_text(content)
    with pytest.raises(StartError, match=words) as caught:
        Tokens(path)
    assert not any(line in str(caught.value) for line in content.split("\n") if line and not line.startswith("#"))


def test_a_token_file_that_is_not_there_is_said_before_anything_listens(tmp_path):
    with (
        pytest.raises(StartError, match="cannot read --token-file"),
        live(security=Security(token_file=tmp_path / "no")),
    ):
        pytest.fail("it listens")
