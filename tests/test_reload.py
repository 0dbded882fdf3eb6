"""A bundle takes another's place while requests run: none is lost, and a bad one takes nobody's place."""

import gc
import os
import shutil
import threading
import weakref
from dataclasses import replace

import grpc
import numpy as np
import onnx
import pytest
from bundles import CLEAN, bounded_model, clean_scores, manifest, original_model, shifted_bundle
from onnx import TensorProto, helper
from servers import TIMEOUT_S, GatedModel, infer_request, live, tensors, tiny_guard, wait_for

from guard import Guard
from guard.bundle import BOUNDED, MANIFEST, ORIGINAL, THRESHOLDS, load_bundle, pack_scores, save_bundle
from guard.manifest import write_manifest
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb
from serving.config import ModelControl
from serving.store import repository_store, single_store

Code = grpc.StatusCode
N_CLIENTS, N_RELOADS = 6, 8


def opened(folder):
    return Guard.load(folder, threads=1)


def load(server):
    server.call("RepositoryModelLoad", pb.RepositoryModelLoadRequest(model_name="m"))


def refused_load(server):
    return server.refuses(pb.RepositoryModelLoadRequest(model_name="m"), "RepositoryModelLoad")


def shift(response):
    return tensors(response)["y"][0][0] - CLEAN[0][0]


def ask(server):
    return server.call("ModelInfer", infer_request(CLEAN, model="m"))


@pytest.fixture
def root(tmp_path):
    shifted_bundle(tmp_path / "models" / "m" / "1", 0)
    return tmp_path / "models"


@pytest.fixture
def server(root):
    with live(store=repository_store(root, opened), model_control=ModelControl.EXPLICIT) as running:
        yield running


def test_no_request_is_lost_while_bundles_change_under_load(server, root):
    stop, seen, errors = threading.Event(), [], []

    def client():
        while not stop.is_set():
            try:
                seen.append(shift(ask(server)))
            except grpc.RpcError as error:
                errors.append(error)

    clients = [threading.Thread(target=client) for _ in range(N_CLIENTS)]
    for thread in clients:
        thread.start()
    for new in range(1, N_RELOADS + 1):
        # By turns in the place of the version that serves, and as a version above it.
        shifted_bundle(root / "m" / str(1 + new // 2), new)
        load(server)
        assert shift(ask(server)) == new
    stop.set()
    for thread in clients:
        thread.join(TIMEOUT_S)
    assert errors == []
    assert set(seen) <= set(range(N_RELOADS + 1))
    assert server.call("ModelStatistics").model_stats[0].inference_stats.fail.count == 0


def test_a_request_that_has_begun_is_finished_by_the_bundle_it_began_with(root):
    gate, guards = GatedModel(), []

    def gated(folder):
        guards.append(tiny_guard(original=gate) if not guards else opened(folder))
        return guards[-1]

    with live(store=repository_store(root, gated)) as server:
        gate.close()
        begun = server.rpc("ModelInfer").future(infer_request(CLEAN, model="m"), timeout=TIMEOUT_S)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        waiting = server.rpc("ModelInfer").future(infer_request(CLEAN, model="m"), timeout=TIMEOUT_S)
        wait_for(lambda: server.sample("guard_requests_in_flight", model="m/1") == 2)
        shifted_bundle(root / "m" / "1", 7)
        server.reload()
        assert shift(ask(server)) == 7
        wait_for(lambda: server.sample("guard_requests_in_flight", model="m/1") == 2)
        gate.open.set()
        assert (shift(begun.result()), shift(waiting.result())) == (0, 0)
        assert gate.rows_run == [1, 1]
        assert server.sample("guard_requests_total", model="m/1", status="OK") == 3


def test_a_request_that_has_begun_is_finished_after_its_model_is_unloaded(root):
    gate = GatedModel()
    store = repository_store(root, lambda _: tiny_guard(original=gate))
    with live(store=store, model_control=ModelControl.EXPLICIT) as server:
        gate.close()
        begun = server.rpc("ModelInfer").future(infer_request(CLEAN, model="m"), timeout=TIMEOUT_S)
        assert gate.started.acquire(timeout=TIMEOUT_S)
        server.call("RepositoryModelUnload", pb.RepositoryModelUnloadRequest(model_name="m"))
        assert server.refuses(infer_request(CLEAN, model="m"))[0] == Code.UNAVAILABLE
        gate.open.set()
        assert shift(begun.result()) == 0


def n_workers():
    """Return how many threads run models."""
    return sum(thread.name.startswith("guard") for thread in threading.enumerate())


def test_the_earlier_bundle_is_let_go_of_with_its_memory_and_threads(root):
    guards = []

    def watched(folder):
        guard = opened(folder)
        guards.append(weakref.ref(guard))
        return guard

    with live(store=repository_store(root, watched)) as server:
        ask(server)
        before = n_workers()
        for new in range(1, 4):
            shifted_bundle(root / "m" / "1", new)
            server.reload()
            ask(server)
        wait_for(lambda: gc.collect() >= 0 and [guard() is None for guard in guards] == [True] * 3 + [False])
        wait_for(lambda: n_workers() == before)


def test_what_has_not_changed_is_not_opened_again(root):
    folders = []

    def counted(folder):
        folders.append(folder.name)
        return opened(folder)

    with live(store=repository_store(root, counted)) as server:
        shifted_bundle(root / "m" / "2", 2)
        server.reload()
        server.reload()
    assert folders == ["1", "2"]


def test_a_load_whose_caller_leaves_is_made_to_its_end(root):
    gate, folders = threading.Event(), []

    def slow(folder):
        folders.append(folder)
        assert len(folders) == 1 or gate.wait(TIMEOUT_S)
        return opened(folder)

    with live(store=repository_store(root, slow), model_control=ModelControl.EXPLICIT) as server:
        shifted_bundle(root / "m" / "1", 4)
        request = pb.RepositoryModelLoadRequest(model_name="m")
        loading = server.rpc("RepositoryModelLoad").future(request, timeout=TIMEOUT_S)
        wait_for(lambda: len(folders) == 2)
        loading.cancel()
        assert shift(ask(server)) == 0
        gate.set()
        load(server)
        assert shift(ask(server)) == 4


def rewritten(folder, **values):
    signed = replace(load_bundle(folder).manifest, **values)
    (folder / MANIFEST).write_bytes(write_manifest(signed))


def resaved(folder, **files):
    contents = {ORIGINAL: original_model(), BOUNDED: bounded_model(), THRESHOLDS: pack_scores(clean_scores())}
    save_bundle(folder, manifest(), contents | files)


def linked(folder):
    (folder / BOUNDED).unlink()
    (folder / BOUNDED).symlink_to("/etc/passwd")


def piped(folder):
    (folder / BOUNDED).unlink()
    os.mkfifo(folder / BOUNDED)


def renamed(content):
    """Return a model whose output has the name of one of the guard's."""
    model = onnx.load_from_string(content)
    model.graph.node[-1].output[0] = model.graph.output[0].name = "guard_flagged"
    return model.SerializeToString()


def with_the_guards_name(folder):
    output = TensorSpec(name="guard_flagged", dtype="float32", shape=(None, 3))
    files = {ORIGINAL: renamed(original_model()), BOUNDED: renamed(bounded_model())}
    contents = files | {THRESHOLDS: pack_scores(clean_scores())}
    save_bundle(folder, replace(manifest(), output=output, logits="guard_flagged"), contents)


def out_of_range():
    """Return a model that opens, and fails in every run."""
    model = onnx.load_from_string(original_model())
    values = helper.make_tensor("places", TensorProto.INT64, [3], [9, 9, 9])
    del model.graph.node[:]
    model.graph.node.append(helper.make_node("Constant", [], ["places"], value=values))
    model.graph.node.append(helper.make_node("Gather", ["x", "places"], ["y"], axis=1))
    return model.SerializeToString()


def emptied(folder):
    shutil.rmtree(folder)
    folder.mkdir()


def turned_into_a_file(folder):
    shutil.rmtree(folder)
    folder.touch()


def write(name, change):
    """Return what changes the bytes of a file of a bundle."""
    return lambda folder: (folder / name).write_bytes(change((folder / name).read_bytes()))


HOSTILE = {
    "altered": (write(BOUNDED, lambda b: b[:-1] + b"!"), "not the file that was saved"),
    "cut short": (write(ORIGINAL, lambda b: b[:-1]), "not the file that was saved"),
    "missing file": (lambda f: (f / THRESHOLDS).unlink(), "thresholds.npz cannot be read"),
    "extra file": (lambda f: (f / "more.onnx").touch(), "which its manifest does not name"),
    "no manifest": (lambda f: (f / MANIFEST).unlink(), "manifest.json cannot be read"),
    "nonsense": (write(MANIFEST, lambda _: b"{"), "manifest.json"),
    "leads out": (lambda f: rewritten(f, files={"../x": load_bundle(f).manifest.files[ORIGINAL]}), "names the file"),
    "link": (linked, "is a link"),
    "pipe": (piped, "no plain file"),
    "huge": (lambda f: os.truncate(f / BOUNDED, 2**40), f"{BOUNDED} has {2**40} bytes"),
    "no model": (lambda f: resaved(f, **{BOUNDED: b"no model"}), "onnxruntime"),
    "another type": (lambda f: resaved(f, **{BOUNDED: bounded_model(TensorProto.DOUBLE)}), "bounded"),
    "runs on nothing": (lambda f: resaved(f, **{BOUNDED: out_of_range()}), "answer none of three trial inputs"),
    "NaN scores": (lambda f: resaved(f, **{THRESHOLDS: pack_scores(clean_scores() * np.nan)}), "clean_scores"),
    "the guard's name": (with_the_guards_name, "which the guard adds"),
    "gone": (shutil.rmtree, "neither a bundle nor versions"),
    "empty": (emptied, "manifest.json cannot be read"),
    "a file": (turned_into_a_file, "neither a bundle nor versions"),
}


@pytest.mark.parametrize(("change", "words"), HOSTILE.values(), ids=HOSTILE)
def test_a_bad_bundle_leaves_the_one_before_it_serving_and_says_why(server, root, change, words):
    change(root / "m" / "1")
    code, said = refused_load(server)
    assert code == Code.FAILED_PRECONDITION
    assert words in said
    assert said.endswith("versions that serve on: 1")
    server.reload()
    index = server.call("RepositoryIndex").models
    assert any(words in model.reason for model in index)
    assert ("1", "READY") in [(model.version, model.state) for model in index]
    assert server.call("ServerReady").ready
    assert shift(ask(server)) == 0


def test_a_bad_bundle_is_forgotten_once_there_is_a_good_one(server, root):
    emptied(root / "m" / "1")
    refused_load(server)
    shifted_bundle(root / "m" / "1", 3)
    load(server)
    (model,) = server.call("RepositoryIndex").models
    assert (model.state, model.reason, shift(ask(server))) == ("READY", "", 3)


def test_a_failure_nobody_thought_of_is_logged_and_not_told(root, caplog):
    calls = []

    def second_fails(folder):
        calls.append(folder)
        if len(calls) == 2:
            raise RuntimeError("secret")
        return opened(folder)

    with live(store=repository_store(root, second_fails), model_control=ModelControl.EXPLICIT) as server:
        shifted_bundle(root / "m" / "1", 1)
        _, said = refused_load(server)
        assert "the server's log says why" in said
        assert "secret" not in said
        assert "secret" in caplog.text
        assert shift(ask(server)) == 0


def test_a_single_bundle_is_reloaded_under_its_name(tmp_path):
    folder = shifted_bundle(tmp_path / "bundle", 0)
    store = single_store(folder, "tiny", opened)
    with live(opened(folder), store=store) as server:
        server.infer(CLEAN)
        shifted_bundle(folder, 5)
        server.reload()
        assert shift(server.infer(CLEAN)) == 5
        (folder / BOUNDED).write_bytes(b"")
        server.reload()
        assert shift(server.infer(CLEAN)) == 5
        (model,) = server.call("RepositoryIndex").models
        assert model.reason.startswith("bounded.onnx is not the file that was saved")
        assert server.sample("guard_rows_total") == 3
