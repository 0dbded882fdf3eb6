"""Tensors survive the wire bit for bit; whatever disagrees with itself is refused by name."""

import contextlib

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from guard.errors import InputError
from guard.types import TensorSpec
from serving._pb import open_inference_pb2 as pb
from serving.codec import add_outputs, decode_input, decode_inputs, requested_outputs
from serving.datatypes import DATATYPES, datatype_of, from_raw, to_raw

Input = pb.ModelInferRequest.InferInputTensor
TYPED = {name: datatype for name, datatype in DATATYPES.items() if datatype.field}
SPEC = TensorSpec(name="x", dtype="float32", shape=(None, 3))
RAW = np.arange(3, dtype="<f4").tobytes()


@st.composite
def arrays(draw, names=tuple(DATATYPES)):
    """Draw an array of any datatype, of any bit pattern the datatype has."""
    datatype = DATATYPES[draw(st.sampled_from(names))]
    shape = tuple(draw(st.lists(st.integers(0, 4), max_size=3)))
    count = int(np.prod(shape))
    if datatype.name == "BYTES":
        values = np.empty(count, dtype=object)
        values[:] = draw(st.lists(st.binary(max_size=5), min_size=count, max_size=count))
    elif datatype.name == "BOOL":
        values = np.array(draw(st.lists(st.booleans(), min_size=count, max_size=count)), dtype=bool)
    else:
        n_bytes = count * datatype.dtype.itemsize
        values = np.frombuffer(draw(st.binary(min_size=n_bytes, max_size=n_bytes)), dtype=datatype.dtype)
    return values.reshape(shape)


def over_the_wire(request):
    return pb.ModelInferRequest.FromString(request.SerializeToString())


def same(one, other):
    return one.dtype == other.dtype and one.shape == other.shape and to_raw(one) == to_raw(other)


@given(array=arrays())
def test_every_raw_tensor_comes_back_bit_for_bit(array):
    response = pb.ModelInferResponse()
    add_outputs(response, {"t": array})
    received = pb.ModelInferResponse.FromString(response.SerializeToString())
    (tensor,) = received.outputs
    sent_back = Input(name="t", datatype=tensor.datatype, shape=tensor.shape)
    assert same(decode_input(sent_back, received.raw_output_contents[0]), array)


@given(array=arrays(names=tuple(TYPED)))
def test_every_typed_tensor_comes_back_value_for_value(array):
    datatype = datatype_of(array.dtype)
    tensor = Input(name="t", datatype=datatype.name, shape=array.shape)
    getattr(tensor.contents, datatype.field).extend(array.ravel().tolist())
    decoded = decode_input(over_the_wire(pb.ModelInferRequest(inputs=[tensor])).inputs[0], None)
    assert decoded.dtype == array.dtype
    np.testing.assert_array_equal(decoded, array)


@given(
    content=st.binary(max_size=40),
    name=st.sampled_from([*DATATYPES, "FP99", ""]),
    shape=st.lists(st.integers(-(2**63), 2**63 - 1) | st.integers(-1, 5), max_size=4),
    typed=st.booleans(),
)
def test_hostile_tensors_decode_or_are_refused_and_nothing_else(content, name, shape, typed):
    tensor = Input(name="x", datatype=name, shape=shape)
    with contextlib.suppress(InputError):
        assert decode_input(tensor, None if typed else content).shape == tuple(shape)


def test_raw_bytes_are_little_endian_and_viewed_not_copied():
    raw = bytes.fromhex("0000803f00000040")
    array = from_raw("x", DATATYPES["FP32"], (2,), raw)
    np.testing.assert_array_equal(array, [1.0, 2.0])
    assert not array.flags.owndata
    assert not array.flags.writeable
    assert to_raw(np.array([1.0, 2.0], dtype=">f4")) == raw


def test_sixteen_bit_floats_keep_their_bits():
    assert from_raw("x", DATATYPES["FP16"], (1,), b"\x00\x3c")[0] == 1.0
    bf16 = from_raw("x", DATATYPES["BF16"], (1,), b"\x80\x3f")
    assert bf16.dtype == ml_dtypes.bfloat16
    assert bf16[0] == 1.0


def test_bytes_elements_carry_their_length():
    assert to_raw(np.array([b"ab", b""], dtype=object)) == b"\x02\0\0\0ab\0\0\0\0"


def request(*, name="x", datatype="FP32", shape=(1, 3), raw=(RAW,), contents=None, n_inputs=1):
    tensor = Input(name=name, datatype=datatype, shape=shape, contents=contents)
    return pb.ModelInferRequest(inputs=[tensor] * n_inputs, raw_input_contents=raw)


FP32S = pb.InferTensorContents(fp32_contents=[0, 1, 2])

REFUSED = {
    "unknown input": (request(name="z"), "'z' is unknown; the model takes x"),
    "no input": (pb.ModelInferRequest(), "'x' is missing; the model takes x"),
    "input twice": (request(n_inputs=2, raw=(RAW, RAW)), "twice"),
    "another datatype": (request(datatype="FP64"), "has datatype FP64; the model takes FP32"),
    "bf16 for fp32": (request(datatype="BF16", raw=(RAW[:6],)), "has datatype BF16; the model takes FP32"),
    "made-up datatype": (request(datatype="FP99"), "'FP99'; the protocol has BOOL"),
    "raw too short": (request(raw=(RAW[:-1],)), r"11 raw bytes; FP32 of shape \[1, 3\] takes 12"),
    "raw too long": (request(raw=(RAW + b"\0",)), "13 raw bytes"),
    "surplus raw": (request(raw=(RAW, RAW)), "2 entries for 1 inputs"),
    "raw and typed": (request(contents=FP32S), "raw data and fp32_contents too"),
    "no data": (request(raw=()), "no data"),
    "typed count": (request(raw=(), shape=(2, 3), contents=FP32S), r"3 elements; FP32 of shape \[2, 3\] takes 6"),
    "typed field": (request(raw=(), contents=pb.InferTensorContents(int_contents=[1])), "int_contents; FP32 takes"),
    "negative axis": (request(shape=(-1, 3)), "negative"),
    "overflowing shape": (request(shape=(2**62, 2**62), raw=(b"",)), "more than can be addressed"),
    "overflow behind a zero": (request(shape=(0, 2**62, 2**62), raw=(b"",)), "more than can be addressed"),
    "too many axes": (request(shape=(1,) * 33), "33 axes"),
}


@pytest.mark.parametrize(("wrong", "message"), REFUSED.values(), ids=REFUSED)
def test_a_request_that_disagrees_with_itself_or_the_model_is_refused_by_name(wrong, message):
    with pytest.raises(InputError, match=message):
        decode_inputs(over_the_wire(wrong), [SPEC])


@pytest.mark.parametrize(
    ("datatype", "contents", "message"),
    [
        ("UINT8", {"uint_contents": [256]}, "holds 256; UINT8 takes 0 to 255"),
        ("INT8", {"int_contents": [-129]}, "holds -129; INT8 takes -128 to 127"),
        ("UINT16", {"uint_contents": [2**16]}, "UINT16 takes 0 to 65535"),
        ("INT16", {"int_contents": [2**15]}, "INT16 takes -32768 to 32767"),
        ("FP16", {"fp32_contents": [1]}, "FP16 travels raw only"),
        ("BF16", {"fp32_contents": [1]}, "BF16 travels raw only"),
        ("FP32", {"fp32_contents": [1], "fp64_contents": [1]}, "fp32_contents and fp64_contents"),
    ],
)
def test_typed_contents_out_of_range_or_place_are_refused(datatype, contents, message):
    tensor = Input(name="t", datatype=datatype, shape=[1], contents=pb.InferTensorContents(**contents))
    with pytest.raises(InputError, match=message):
        decode_input(tensor, None)


@pytest.mark.parametrize(
    ("datatype", "raw", "message"),
    [
        ("BOOL", b"\x02", "the byte 2; BOOL takes 0 and 1"),
        ("BYTES", b"\x01\0\0", "ends within the length of element 0"),
        ("BYTES", b"\xff\xff\xff\xffab", "short of element 0"),
        ("BYTES", b"\x02\0\0\0a", "ends 1 bytes short of element 0"),
        ("BYTES", b"", "holds 0 elements; its shape takes 1"),
        ("BYTES", b"\0\0\0\0" * 3, "holds more than 1 elements"),
    ],
)
def test_raw_bytes_that_are_no_values_are_refused(datatype, raw, message):
    with pytest.raises(InputError, match=message):
        decode_input(Input(name="t", datatype=datatype, shape=[1]), raw)


@pytest.mark.parametrize("parameter", ["shared_memory_region", "classification"])
def test_parameters_that_would_change_the_question_are_refused(parameter):
    wrong = request()
    wrong.inputs[0].parameters[parameter].int64_param = 1
    with pytest.raises(InputError, match=f"{parameter}, which is not supported"):
        decode_inputs(wrong, [SPEC])


def outputs(*names):
    return pb.ModelInferRequest(outputs=[pb.ModelInferRequest.InferRequestedOutputTensor(name=n) for n in names])


def test_outputs_come_as_asked_or_all_of_them():
    assert requested_outputs(outputs(), ["a", "b"]) == ("a", "b")
    assert requested_outputs(outputs("b"), ["a", "b"]) == ("b",)


@pytest.mark.parametrize(("names", "message"), [(("c",), "'c' was asked for"), (("a", "a"), "twice")])
def test_outputs_that_cannot_be_given_are_refused(names, message):
    with pytest.raises(InputError, match=message):
        requested_outputs(outputs(*names), ["a", "b"])


def test_elements_that_are_no_bytes_are_refused():
    with pytest.raises(InputError, match="holds str; it takes bytes"):
        to_raw(np.array(["a"], dtype=object))


def test_a_dtype_that_the_protocol_lacks_is_refused():
    with pytest.raises(InputError, match="no datatype for complex64"):
        to_raw(np.zeros(1, dtype=np.complex64))
