"""Moments of activations: as numpy computes them in one go, however the data are cut into batches."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto
from small_graphs import model_of, node

from calibrate.graph import find_sites
from calibrate.statistics import Moments, site_moments
from guard.errors import CalibrationError

VALUES = hnp.arrays(np.float64, st.integers(2, 30), elements=st.floats(-1e3, 1e3))
IMAGES = np.random.default_rng(0).normal(1, 2, (150, 3, 4, 5)).astype(np.float32)
RELU = model_of(
    node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), x=("N", 3, 4, 5), y=("N", 3, 4, 5)
)  # fmt: skip


def _silent(stage, done, total):
    pass


def _moments(inputs, pooling, *, model=RELU):
    return site_moments(model, find_sites(model), inputs, pooling=pooling, progress=_silent)["relu"]


def _assert_same(found: Moments, expected: Moments):
    assert found.n == expected.n
    np.testing.assert_allclose(found.mean, expected.mean, rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(found.std, expected.std, rtol=1e-6, atol=1e-6)


@given(VALUES)
def test_moments_of_one_batch_are_numpys(values):
    moments = Moments.of(values, (0,))
    assert moments.n == len(values)
    np.testing.assert_allclose(moments.mean, [values.mean()], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(moments.std, [values.std(ddof=1)], rtol=1e-9, atol=1e-9)


@given(VALUES, st.data())
def test_merged_moments_are_those_of_all_values_together(values, data):
    cut = data.draw(st.integers(1, len(values) - 1))
    merged = Moments.of(values[:cut], (0,)).merged(Moments.of(values[cut:], (0,)))
    _assert_same(merged, Moments.of(values, (0,)))


@given(VALUES, VALUES)
def test_it_does_not_matter_which_is_merged_into_which(first, second):
    one, other = Moments.of(first, (0,)), Moments.of(second, (0,))
    _assert_same(one.merged(other), other.merged(one))


def test_a_small_spread_far_from_zero_is_not_lost_in_float32():
    values = (1e4 + np.random.default_rng(0).normal(size=5000)).astype(np.float32)
    assert Moments.of(values, (0,)).std == pytest.approx(values.astype(np.float64).std(ddof=1), rel=1e-5)


def test_float16_values_do_not_overflow_when_squared():
    values = np.array([-3000, 3000], dtype=np.float16)
    assert Moments.of(values, (0,)).std == pytest.approx(np.std([-3000, 3000], ddof=1))


def test_one_value_has_no_spread():
    assert Moments.of(np.ones((1, 3)), (0,)).std.tolist() == [[0, 0, 0]]


def _expected(pooling):
    relu = np.maximum(IMAGES.astype(np.float64), 0)
    if pooling == "maximum":
        relu = relu.max(axis=(2, 3), keepdims=True)
    axes = (0, 2, 3) if pooling == "channel" else 0
    return relu.mean(axis=axes, keepdims=True), relu.std(axis=axes, keepdims=True, ddof=1)


@pytest.mark.parametrize(
    ("pooling", "shape", "n"),
    [("channel", (1, 3, 1, 1), 3000), ("maximum", (1, 3, 1, 1), 150), ("neuron", (1, 3, 4, 5), 150)],
)
def test_every_pooling_is_numpys_over_several_batches(pooling, shape, n):
    moments = _moments(IMAGES, pooling)
    mean, std = _expected(pooling)
    assert (moments.n, moments.mean.shape) == (n, shape)
    np.testing.assert_allclose(moments.mean, mean, rtol=1e-6)
    np.testing.assert_allclose(moments.std, std, rtol=1e-5)


@pytest.mark.parametrize("pooling", ["channel", "maximum", "neuron"])
@pytest.mark.parametrize("batch", [1, 7, 150])
def test_the_batch_size_does_not_matter(pooling, batch):
    fixed = model_of(
        node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), x=(batch, 3, 4, 5), y=(batch, 3, 4, 5)
    )
    _assert_same(_moments(IMAGES, pooling, model=fixed), _moments(IMAGES, pooling))


def test_channels_that_are_last_are_pooled_over_what_is_between():
    tokens = np.random.default_rng(0).normal(size=(20, 7, 3)).astype(np.float32)
    model = model_of(
        node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["relu"]), node("Neg", ["relu"], ["y"]),
        x=("N", 7, 3), y=("N", 7, 3), weights={"w": np.eye(3)},
    )  # fmt: skip
    expected = np.maximum(tokens, 0).max(axis=1).mean(axis=0)
    np.testing.assert_allclose(_moments(tokens, "maximum", model=model).mean, expected[None, None], rtol=1e-5)


def test_a_float16_network_has_the_moments_of_its_values():
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]),
        x=("N", 3, 4, 5), y=("N", 3, 4, 5), dtype=TensorProto.FLOAT16,
    )  # fmt: skip
    half = IMAGES.astype(np.float16)
    moments = _moments(half, "neuron", model=model)
    np.testing.assert_allclose(moments.mean[0], np.maximum(half.astype(np.float64), 0).mean(axis=0), rtol=1e-6)


def test_progress_is_told_up_to_the_last_input():
    told = []
    site_moments(RELU, find_sites(RELU), IMAGES, pooling="channel", progress=lambda *step: told.append(step))
    assert told[-1] == ("activation statistics", 150, 150)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)


def test_an_activation_that_overflows_is_refused_by_name():
    model = model_of(
        node("Mul", ["x", "big"], ["h"]), node("Relu", ["h"], ["relu"]), node("Neg", ["relu"], ["y"]),
        weights={"big": 1e38},
    )  # fmt: skip
    with pytest.raises(CalibrationError, match="'relu' is NaN or infinite"):
        _moments(np.full((2, 3), 100, dtype=np.float32), "channel", model=model)
