"""Every request that is wrong in some way is told so over HTTP, in words, and stops nothing."""

import numpy as np
import pytest
from bundles import CLEAN, tiny_bundle
from rest_calls import LENGTH, RAW, ROWS, infer_body, mixed_binary, output, post_infer
from servers import live

from guard import Guard


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    guard = Guard.load(tiny_bundle(tmp_path_factory.mktemp("rest")), threads=1)
    with live(guard, rest_port=0) as running:
        yield running


def changed(**tensor):
    return infer_body(ROWS, **tensor), {}


def dropped(key):
    body = infer_body(ROWS)
    del body["inputs"][0][key]
    return body, {}


DOUBLED = {"inputs": infer_body(ROWS)["inputs"] * 2}
PROBES = {
    "wrong shape": (infer_body([[1, 2, 3, 4]]), {}, "has shape (1, 4); the model takes x"),
    "scalar": (*changed(shape=[], data=[1]), "has shape ()"),
    "no rows": (*changed(shape=[0, 3], data=[]), "send at least one row"),
    "zero-size dimension": (*changed(shape=[2, 0], data=[[], []]), "has shape (2, 0)"),
    "negative shape": (*changed(shape=[-1, 3]), "no axis of a request may be negative"),
    "huge shape": (*changed(shape=[2**31, 2**20], data=[1]), "1 elements"),
    "endless shape": (*changed(shape=[2**62, 2**62], data=[1]), "more than can be addressed"),
    "shape beyond int64": (*changed(shape=[2**64], data=[1]), "has no shape"),
    "many axes": (*changed(shape=[1] * 33), "33 axes"),
    "shape of texts": (*changed(shape=["2", "3"]), "has no shape"),
    "no shape": (*dropped("shape"), "has no shape"),
    "no name": (*dropped("name"), "'name' is missing"),
    "no datatype": (*dropped("datatype"), "'datatype' is missing"),
    "too many rows": (infer_body(np.zeros((1025, 3)).tolist()), {}, "1025 rows and the limit is 1024"),
    "wrong dtype": (*changed(datatype="INT64", data=[1] * 6), "INT64; the model takes FP32"),
    "made-up dtype": (*changed(datatype="FP99"), "'FP99'"),
    "wrong input name": (*changed(name="z"), "'z' is unknown; the model takes x"),
    "input twice": (DOUBLED, {}, "an input comes twice"),
    "no input": ({}, {}, "'x' is missing"),
    "inputs no array": ({"inputs": {"name": "x"}}, {}, "'inputs' is no array of objects"),
    "too short": (*changed(data=[1, 2, 3, 4, 5]), "5 elements; FP32 of shape [2, 3] takes 6"),
    "too long": (*changed(data=[1] * 7), "7 elements"),
    "nested otherwise": (*changed(data=[[1, 2], [3, 4], [5, 6]]), "nested otherwise"),
    "ragged": (*changed(data=[[1, 2, 3], [4, 5, 6, 7]]), "nested otherwise"),
    "too deep": (*changed(data=[[[1], [2], [3]], [[4], [5], [6]]]), "nested otherwise"),
    "text for a number": (*changed(data=["1"] * 6), "holds '1'; FP32 takes numbers"),
    "true for a number": (*changed(data=[True] * 6), "holds True; FP32 takes numbers"),
    "null": (*changed(data=[None] * 6), "holds None"),
    "endless number": (*changed(data=[10**400] * 6), "which FP32 cannot hold"),
    "beyond float32": (*changed(data=[1e39] * 6), "NaN or infinity"),
    "no data": (*dropped("data"), "has no data"),
    "data and binary": (*changed(parameters={"binary_data_size": 0}), "or has them twice"),
    "shared memory": (*changed(parameters={"shared_memory_region": "r"}), "shared_memory_region, which is not"),
    "unknown output": ({**infer_body(ROWS), "outputs": [{"name": "no"}]}, {}, "'no' was asked for"),
    "output twice": ({**infer_body(ROWS), "outputs": [{"name": "y"}] * 2}, {}, "an output was asked for twice"),
    "null parameter": ({**infer_body(ROWS), "parameters": {"p": None}}, {}, "the parameter 'p'"),
    "endless parameter": ({**infer_body(ROWS), "parameters": {"p": 2**70}}, {}, "the parameter 'p'"),
    "half a surrogate": ({**infer_body(ROWS), "id": "\ud800"}, {}, "half a surrogate pair"),
    "NaN": (b'{"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [NaN, 1, 1]}]}', {}, "holds NaN"),
    "Infinity": (b'{"inputs": [-Infinity]}', {}, "holds -Infinity, which JSON does not have"),
    "a key twice": (b'{"id": "a", "id": "b"}', {}, "says 'id' twice"),
    "no JSON": (b"\xff", {}, "is no JSON"),
    "empty": (b"", {}, "is no JSON"),
    "no object": (b"[]", {}, "no object"),
    "deep": (b"[" * 10**6, {}, "nested too deeply"),
    "many digits": (b'{"id": ' + b"9" * 5000 + b"}", {}, "is no JSON"),
    "binary too short": (*mixed_binary(raw=RAW[:-4]), "20 raw bytes; FP32 of shape [2, 3] takes 24"),
    "binary NaN": (*mixed_binary(raw=np.full((2, 3), np.nan, "<f4").tobytes()), "NaN or infinity in 2 of 2 rows"),
    "binary huge shape": (*mixed_binary({"shape": [2, 2**40]}), "24 raw bytes"),
    "binary of more than is there": (*mixed_binary({"parameters": {"binary_data_size": 25}}), "24 bytes are left"),
    "binary of no size": (*mixed_binary({"parameters": {"binary_data_size": "24"}}), "binary_data_size '24'"),
    "surplus binary": (*mixed_binary({"parameters": {"binary_data_size": 20}}), "4 bytes behind the JSON belong to no"),
    "header too long": (infer_body(ROWS), {LENGTH: "99999"}, "is 99999, but the body has"),
    "header negative": (infer_body(ROWS), {LENGTH: "-1"}, "no whole number"),
    "broken gzip": (b"no gzip", {"Content-Encoding": "gzip"}, ""),
}  # fmt: skip


@pytest.mark.parametrize(("body", "headers", "words"), PROBES.values(), ids=PROBES)
def test_each_wrong_request_is_400_with_its_reason_and_the_next_one_is_answered(server, body, headers, words):
    answer = post_infer(server, body, headers=headers)
    assert answer.status == 400
    assert words in answer.json["error"]
    assert "Traceback" not in answer.json["error"]
    assert output(post_infer(server, infer_body(CLEAN.tolist())), "y")["data"] == CLEAN.ravel().tolist()
