"""Several bundles behind one server: which version answers, what the index says, and names that lead nowhere else."""

import os
from pathlib import Path

import grpc
import pytest
from bundles import CLEAN, shifted_bundle
from grpc_health.v1 import health_pb2, health_pb2_grpc
from hypothesis import given
from hypothesis import strategies as st
from servers import infer_request, live, tensors

from guard import Guard
from serving._pb import open_inference_pb2 as pb
from serving.config import ModelControl
from serving.errors import StartError
from serving.store import is_model_name, repository_store

Code = grpc.StatusCode


def opened(folder):
    return Guard.load(folder, threads=1)


def store_of(root):
    return repository_store(root, opened)


def answer(server, model, version="", rows=CLEAN):
    """Return which version answered and the shift it answered with."""
    response = server.call("ModelInfer", infer_request(rows, model=model, version=version))
    return response.model_version, tensors(response)["y"][0][0] - rows[0][0]


def index(server):
    models = server.call("RepositoryIndex").models
    return {f"{m.name}/{m.version}": m.state if not m.reason else f"{m.state}: {m.reason}" for m in models}


def load(model):
    return pb.RepositoryModelLoadRequest(model_name=model)


def unload(model):
    return pb.RepositoryModelUnloadRequest(model_name=model)


@pytest.fixture
def root(tmp_path):
    """Return a repository with two versions of cats, and dogs without versions."""
    shifted_bundle(tmp_path / "models" / "cats" / "2", 2)
    shifted_bundle(tmp_path / "models" / "cats" / "10", 10)
    shifted_bundle(tmp_path / "models" / "dogs", 1)
    return tmp_path / "models"


@pytest.fixture
def server(root):
    with live(store=store_of(root), model_control=ModelControl.EXPLICIT) as running:
        yield running


def test_every_version_answers_and_no_version_is_the_latest(server):
    assert answer(server, "cats", "2") == ("2", 2)
    assert answer(server, "cats", "10") == ("10", 10)
    assert answer(server, "cats") == ("10", 10)
    assert answer(server, "dogs") == ("1", 1)
    assert index(server) == {"cats/2": "READY", "cats/10": "READY", "dogs/1": "READY"}


def test_metadata_statistics_and_configuration_are_of_the_version_asked_for(server):
    answer(server, "cats", "2")
    metadata = server.call("ModelMetadata", pb.ModelMetadataRequest(name="cats"))
    assert (metadata.name, list(metadata.versions)) == ("cats", ["2", "10"])
    assert server.call("ModelConfig", pb.ModelConfigRequest(name="dogs")).config.name == "dogs"
    counts = {(s.name, s.version): s.inference_count for s in server.call("ModelStatistics").model_stats}
    assert counts == {("cats", "2"): 1, ("cats", "10"): 0, ("dogs", "1"): 0}
    (only,) = server.call("ModelStatistics", pb.ModelStatisticsRequest(name="cats", version="2")).model_stats
    assert only.inference_stats.success.count == 1


def test_each_version_has_series_of_its_own_that_end_with_it(server):
    answer(server, "cats", "2")
    assert server.sample("guard_rows_total", model="cats/2") == 1
    assert server.sample("guard_rows_total", model="cats/10") == 0
    assert server.sample("guard_model_info", model="cats/10", version="10", sha256="0" * 64) == 1
    server.call("RepositoryModelUnload", unload("cats"))
    server.reload()
    labels = {s.labels["model"] for metric in server.registry.collect() for s in metric.samples}
    assert labels == {"dogs/1"}


@pytest.mark.parametrize(
    ("model", "version", "words"),
    [
        ("birds", "", "'birds' is not served here; 'cats', 'dogs' are"),
        ("cats", "3", "has no version '3'; it has '2', '10'"),
        ("cats", "02", "no version '02'"),
        ("cats/2", "", "is not served here"),
    ],
)
def test_what_is_not_in_the_repository_is_not_found_and_never_a_label(server, model, version, words):
    code, said = server.refuses(infer_request(CLEAN, model=model, version=version))
    assert (code, words in said) == (Code.NOT_FOUND, True)
    assert server.sample("guard_requests_total", model="unknown", status="NOT_FOUND") == 1


def test_an_unloaded_model_is_unavailable_until_it_is_loaded_again(server):
    server.call("RepositoryModelUnload", unload("cats"))
    code, said = server.refuses(infer_request(CLEAN, model="cats"))
    assert (code, "not ready" in said) == (Code.UNAVAILABLE, True)
    assert index(server)["cats/10"] == "UNAVAILABLE: unloaded"
    assert server.call("ServerReady").ready
    server.reload()
    assert not server.call("ModelReady", pb.ModelReadyRequest(name="cats")).ready
    server.call("RepositoryModelLoad", load("cats"))
    assert answer(server, "cats") == ("10", 10)


def test_only_ready_versions_are_listed_if_only_they_are_asked_for(server):
    server.call("RepositoryModelUnload", unload("cats"))
    models = server.call("RepositoryIndex", pb.RepositoryIndexRequest(ready=True)).models
    assert [(m.name, m.version) for m in models] == [("dogs", "1")]


def test_new_versions_and_models_serve_after_a_reload_and_removed_ones_no_more(server, root):
    shifted_bundle(root / "cats" / "11", 11)
    shifted_bundle(root / "birds" / "1", 5)
    (root / "dogs").rename(root.parent / "gone")
    (root / "cats" / "2").rename(root.parent / "gone-too")
    server.reload()
    assert index(server) == {"birds/1": "READY", "cats/10": "READY", "cats/11": "READY"}
    assert answer(server, "cats") == ("11", 11)
    assert server.refuses(infer_request(CLEAN, model="dogs"))[0] == Code.NOT_FOUND


def test_clients_may_not_load_or_unload_unless_the_operator_says_so(root):
    with live(store=store_of(root)) as server:
        for name, request in (("RepositoryModelLoad", load("cats")), ("RepositoryModelUnload", unload("cats"))):
            code, said = server.refuses(request, name)
            assert (code, "--model-control explicit" in said) == (Code.FAILED_PRECONDITION, True)
        assert answer(server, "cats") == ("10", 10)


@pytest.mark.parametrize("name", ["..", ".", "", "../models/cats", "cats/2", "cats\\2", ".git", "a\0b", "x" * 300])
def test_names_that_would_leave_the_repository_are_refused(server, name):
    for rpc, request in (("RepositoryModelLoad", load(name)), ("RepositoryModelUnload", unload(name))):
        code, said = server.refuses(request, rpc)
        assert (code, "can be no model's name" in said) == (Code.INVALID_ARGUMENT, True)


@given(st.text())
def test_no_name_that_is_taken_leads_out_of_the_repository(name):
    if is_model_name(name):
        assert Path(os.path.normpath(f"/models/{name}")).parts == ("/", "models", name)


def test_loading_what_is_not_there_is_not_found(server):
    for name, request in (("RepositoryModelLoad", load("birds")), ("RepositoryModelUnload", unload("birds"))):
        assert server.refuses(request, name)[0] == Code.NOT_FOUND


def test_a_load_that_brings_its_own_files_is_unimplemented(server):
    request = load("cats")
    request.parameters["file:1/model.onnx"].bytes_param = b"evil"
    assert server.refuses(request, "RepositoryModelLoad")[0] == Code.UNIMPLEMENTED
    request = unload("cats")
    request.parameters["unload_dependents"].bool_param = True
    server.call("RepositoryModelUnload", request)


@pytest.mark.parametrize("at", ["dogs", "cats/10"])
def test_a_link_is_not_followed(root, at):
    (root / at).rename(root.parent / "elsewhere")
    (root / at).symlink_to(root.parent / "elsewhere")
    with live(store=store_of(root)) as server:
        (state,) = [state for name, state in index(server).items() if "link" in state]
        assert state.startswith("UNAVAILABLE: its folder is a link")
        assert answer(server, "cats", "2") == ("2", 2)


def test_files_hidden_folders_and_folders_without_a_version_are_no_models(root):
    (root / "README").write_text("notes")
    (root / ".git").mkdir()
    (root / "cats" / "notes").mkdir()
    (root / "cats" / "007").mkdir()
    (root / "empty").mkdir()
    with live(store=store_of(root)) as server:
        found = index(server)
        assert found.pop("empty/").startswith("UNAVAILABLE: it holds neither a bundle nor versions")
        assert list(found) == ["cats/2", "cats/10", "dogs/1"]
        assert not server.call("ServerReady").ready


def test_a_server_with_a_model_that_cannot_be_served_is_not_ready_and_the_others_serve(root):
    (root / "dogs" / "bounded.onnx").write_bytes(b"")
    with live(store=store_of(root)) as server:
        assert not server.call("ServerReady").ready
        assert not server.call("ModelReady", pb.ModelReadyRequest(name="dogs")).ready
        assert "bounded.onnx is not the file that was saved" in index(server)["dogs/1"]
        assert str(root) not in index(server)["dogs/1"]
        assert answer(server, "cats") == ("10", 10)
        shifted_bundle(root / "dogs", 3)
        server.reload()
        assert server.call("ServerReady").ready
        assert answer(server, "dogs") == ("1", 3)


def test_health_is_told_per_model_and_watchers_hear_of_changes(server):
    health, serving = health_pb2_grpc.HealthStub(server.channel), health_pb2.HealthCheckResponse.SERVING
    for name in ("", "cats", "dogs", "inference.GRPCInferenceService"):
        assert health.Check(health_pb2.HealthCheckRequest(service=name)).status == serving
    watched = health.Watch(health_pb2.HealthCheckRequest(service="cats"))
    assert next(watched).status == serving
    server.call("RepositoryModelUnload", unload("cats"))
    assert next(watched).status == health_pb2.HealthCheckResponse.NOT_SERVING
    server.call("RepositoryModelLoad", load("cats"))
    assert next(watched).status == serving
    watched.cancel()


def test_a_repository_that_cannot_be_read_or_holds_nothing_is_an_error_at_the_start(tmp_path):
    for folder in (tmp_path / "nowhere", tmp_path):
        with pytest.raises(StartError, match=r"cannot read the folder|holds no model"), live(store=store_of(folder)):
            pytest.fail("it serves nothing")


def test_a_repository_that_vanishes_takes_nothing_from_those_who_are_served(server, root):
    root.rename(root.parent / "away")
    with pytest.raises(StartError, match="cannot read the folder"):
        server.reload()
    assert answer(server, "cats") == ("10", 10)
    assert server.call("ServerReady").ready
