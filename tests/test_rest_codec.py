"""Bodies come back as what was put into them, and whatever else comes is refused in words, at once."""

import json
from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from guard.errors import InputError
from serving._pb import open_inference_pb2 as pb
from serving.codec import add_outputs, decode_inputs
from serving.datatypes import DATATYPES
from serving.json_tensors import from_json, read_json, to_json
from serving.rest_codec import Form, decode_infer, encode_infer

NUMERIC = [d for d in DATATYPES.values() if d.name not in ("BYTES", "BF16")]
SHAPES = array_shapes(min_dims=1, max_dims=3, min_side=0, max_side=4)
FINITE = {"allow_nan": False, "allow_infinity": False}

leaves = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
anything = st.recursive(leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner))
names = st.sampled_from(["x", "y", "z"])
tensors = st.fixed_dictionaries(
    {},
    optional={
        "name": names | anything,
        "datatype": st.sampled_from(sorted(DATATYPES)) | anything,
        "shape": st.lists(st.integers(-2, 4) | st.integers(), max_size=4) | anything,
        "data": st.lists(st.integers(-1, 300), max_size=6) | anything,
        "parameters": st.dictionaries(st.sampled_from(["binary_data_size", "p"]), st.integers(-1, 9) | anything)
        | anything,
    },
)
requests = st.fixed_dictionaries(
    {},
    optional={
        "id": st.text(max_size=3) | anything,
        "inputs": st.lists(tensors, max_size=2) | anything,
        "outputs": st.lists(st.fixed_dictionaries({"name": names}), max_size=2) | anything,
        "parameters": st.dictionaries(st.text(max_size=3), leaves) | anything,
    },
)


@st.composite
def numeric_arrays(draw):
    datatype = draw(st.sampled_from(NUMERIC))
    elements = FINITE if datatype.dtype.kind == "f" else None
    return datatype, draw(arrays(datatype.dtype, SHAPES, elements=elements))


@given(numeric_arrays(), st.booleans())
def test_an_array_comes_back_from_json_flat_or_nested(drawn, nested):
    datatype, array = drawn
    data = json.loads(json.dumps(array.tolist() if nested else to_json("x", array)))
    back = from_json("x", datatype, array.shape, data)
    assert back.dtype == array.dtype
    assert back.tobytes() == array.tobytes()


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"]))))
def test_texts_come_back(texts):
    array = from_json("x", DATATYPES["BYTES"], [len(texts)], texts)
    assert array.tolist() == [text.encode() for text in texts]
    assert to_json("x", array) == texts


@given(requests, st.binary(max_size=12), st.none() | st.integers(0, 200))
def test_whatever_comes_is_a_request_or_refused_in_words(content, behind, n_json):
    body = json.dumps(content).encode()
    with suppress(InputError):
        request, _ = decode_infer(body + behind, len(body) if n_json is None else n_json, model="m", version="")
        assert len(request.raw_input_contents) == len(request.inputs)


@given(st.binary(max_size=40))
def test_bytes_that_are_no_json_are_refused_in_words(content):
    with suppress(InputError):
        read_json(content)


@given(numeric_arrays())
def test_a_binary_input_is_what_grpc_would_have_brought(drawn):
    datatype, array = drawn
    raw = array.astype(array.dtype.newbyteorder("<")).tobytes()
    size = {"binary_data_size": len(raw)}
    tensor = {"name": "x", "datatype": datatype.name, "shape": list(array.shape), "parameters": size}
    header = json.dumps({"inputs": [tensor]}).encode()
    request, _ = decode_infer(header + raw, len(header), model="m", version="1")
    (back,) = decode_inputs(request, [type("Spec", (), {"name": "x", "dtype": array.dtype})()]).values()
    assert back.tobytes() == array.tobytes()


@given(numeric_arrays(), st.booleans())
def test_an_answer_says_the_same_in_json_and_behind_it(drawn, binary):
    datatype, array = drawn
    response = pb.ModelInferResponse(model_name="m", model_version="1")
    add_outputs(response, {"y": array})
    body, n_json = encode_infer(response, Form(all_binary=binary))
    (output,) = json.loads(body[:n_json])["outputs"]
    data = body[n_json:] if binary else from_json("y", datatype, array.shape, output["data"]).tobytes()
    assert (n_json is not None) == binary
    assert data == array.astype(array.dtype.newbyteorder("<")).tobytes()


@pytest.mark.parametrize("name", ["FP16", "BF16", "FP32"])
def test_halves_are_numbers_in_json_too(name):
    array = from_json("x", DATATYPES[name], [2], [0.5, -2])
    assert to_json("x", array) == [0.5, -2.0]


@pytest.mark.parametrize(
    ("name", "value"), [("UINT8", 256), ("UINT8", -1), ("INT8", 128), ("INT32", 2**31), ("UINT64", -1)]
)
def test_a_number_out_of_range_is_named(name, value):
    with pytest.raises(InputError, match=f"{value}.*{name}"):
        from_json("x", DATATYPES[name], [1], [value])


def test_bytes_that_are_no_text_have_to_be_asked_for_in_binary():
    with pytest.raises(InputError, match="ask for binary_data"):
        to_json("y", np.array([b"\xff"], dtype=np.object_))


def test_typed_contents_of_another_server_are_encoded_too():
    output = {"name": "y", "datatype": "FP32", "shape": [2], "contents": {"fp32_contents": [1, 2]}}
    response = pb.ModelInferResponse(model_name="m", outputs=[output])
    assert json.loads(encode_infer(response, Form())[0])["outputs"][0]["data"] == [1, 2]
    assert encode_infer(response, Form(all_binary=True))[0].endswith(np.array([1, 2], "<f4").tobytes())
