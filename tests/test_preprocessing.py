"""Preprocessing: exact numbers, layouts, and what cannot be computed."""

import numpy as np
import pytest
from sample_sources import load, make_folder, save_png, spec_of

from calibrate.data import Preprocessing
from guard.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "clean")


def test_preprocessing_of_a_2x2_image_is_exact(tmp_path):
    pixels = np.array([[[0, 50, 100], [255, 1, 2]], [[10, 20, 30], [40, 60, 80]]], dtype=np.uint8)
    save_png(tmp_path / "clean" / "one" / "x.png", pixels)
    preprocessing = Preprocessing(scale=10.0, mean=(1.0, 2.0, 3.0), std=(0.5, 2.0, 4.0))
    samples = load(tmp_path / "clean", n_classes=1, spec=spec_of(3, 2, 2), preprocessing=preprocessing)
    expected = [[[[-2, 49], [0, 6]], [[1.5, -0.95], [0, 2]], [[1.75, -0.7], [0, 1.25]]]]
    np.testing.assert_allclose(samples[:], np.array(expected, dtype=np.float32), rtol=1e-6)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_inputs_have_the_models_type_and_layout(folder, dtype):
    preprocessing = Preprocessing(layout="nhwc")
    samples = load(folder, spec=spec_of(4, 5, 3, dtype=dtype), preprocessing=preprocessing)
    inputs = samples[1:3]
    assert inputs.dtype == dtype
    assert inputs.flags.c_contiguous
    np.testing.assert_allclose(inputs, samples.raw[1:3] / 255.0, rtol=0, atol=np.finfo(dtype).eps)


def test_a_uint8_model_gets_plain_pixels_from_images(folder):
    samples = load(folder, spec=spec_of(3, 4, 5, dtype="uint8"), preprocessing=Preprocessing())
    np.testing.assert_array_equal(samples[:], load(folder).raw.transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"scale": 0.0}, "must be finite and positive"),
        ({"std": (1.0, 0.0, 1.0)}, "must be finite and positive"),
        ({"mean": (float("nan"),)}, "mean .* must be finite"),
        ({"layout": "chwn"}, "layout 'chwn' is unknown"),
    ],
)
def test_preprocessing_that_cannot_be_computed_is_refused(wrong, message):
    with pytest.raises(InputError, match=message):
        Preprocessing(**wrong)


def test_a_mean_of_other_length_than_the_channels_is_refused(folder):
    with pytest.raises(InputError, match=r"mean .* has 2 values, the images have 3 channels"):
        load(folder, preprocessing=Preprocessing(mean=(0.1, 0.2)))


def test_images_for_a_model_that_takes_none_are_refused(folder):
    with pytest.raises(InputError, match="is no batch of images"):
        load(folder, spec=spec_of(16))


def test_a_layout_that_is_not_the_models_is_named(folder):
    with pytest.raises(InputError, match="32 channels in layout nchw; use layout nhwc"):
        load(folder, spec=spec_of(32, 32, 3))
