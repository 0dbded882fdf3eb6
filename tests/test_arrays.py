"""Reading .npz and .npy files, and refusing those that do not fit."""

import numpy as np
import pytest
from sample_sources import load, pixels_of, save_npz, spec_of

from calibrate.data import Preprocessing
from guard.errors import InputError


def test_an_npy_of_images_has_no_labels(tmp_path):
    np.save(tmp_path / "x.npy", pixels_of(5, 4, 5, 3))
    samples = load(tmp_path / "x.npy")
    assert (len(samples), samples.labels, samples.target_classes) == (5, None, None)
    assert samples[:].shape == (5, 3, 4, 5)


def test_float_arrays_are_model_ready_in_any_float_type(tmp_path):
    inputs = np.arange(12, dtype=np.float64).reshape(4, 3)
    np.save(tmp_path / "x.npy", inputs)
    samples = load(tmp_path / "x.npy", spec=spec_of(3), preprocessing=Preprocessing(mean=(5.0,)))
    assert samples[:].dtype == np.float32
    np.testing.assert_array_equal(np.sort(samples[:], axis=0), inputs)


def test_arrays_of_an_integer_models_type_pass_as_they_are(tmp_path):
    inputs = pixels_of(6, 3, 4, 5)
    np.save(tmp_path / "x.npy", inputs)
    samples = load(tmp_path / "x.npy", spec=spec_of(3, 4, 5, dtype="uint8"))
    assert samples[:].dtype == np.uint8
    assert {x.tobytes() for x in samples[:]} == {x.tobytes() for x in inputs}


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_truncated_arrays_are_refused_in_one_line(tmp_path, suffix):
    path = tmp_path / f"x.{suffix}"
    inputs = np.zeros((50, 2), dtype=np.float32)
    save_npz(path, inputs=inputs) if suffix == "npz" else np.save(path, inputs)
    whole = path.read_bytes()
    for cut in (8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"^[^\n]*cannot be read \([^\n]*\)[^\n]*$"):
            load(path, spec=spec_of(2))


def test_an_npy_with_a_damaged_header_is_refused_in_one_line(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros((5, 2), dtype=np.float32))
    (tmp_path / "x.npy").write_bytes((tmp_path / "x.npy").read_bytes().replace(b"}", b"7"))
    with pytest.raises(InputError, match=r"^[^\n]*cannot be read \([^\n]*$"):
        load(tmp_path / "x.npy", spec=spec_of(2))


@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_pickled_objects_are_never_loaded(tmp_path, suffix):
    path, objects = tmp_path / f"x.{suffix}", np.array([{"a": 1}], dtype=object)
    save_npz(path, inputs=objects) if suffix == "npz" else np.save(path, objects)
    with pytest.raises(InputError, match="save plain arrays"):
        load(path)


def test_an_npz_without_inputs_is_refused(tmp_path):
    path = save_npz(tmp_path / "x.npz", images=np.zeros((2, 2)))
    with pytest.raises(InputError, match="holds 'images', but no array `inputs`"):
        load(path)


@pytest.mark.parametrize("inputs", [np.zeros((0, 3), np.float32), np.float32(1), np.zeros((2, 0), np.float32)])
@pytest.mark.parametrize("suffix", ["npz", "npy"])
def test_empty_arrays_are_refused(tmp_path, inputs, suffix):
    path = tmp_path / f"x.{suffix}"
    save_npz(path, inputs=inputs) if suffix == "npz" else np.save(path, inputs)
    with pytest.raises(InputError, match="are empty; give N > 0 inputs"):
        load(path, spec=spec_of(3))


@pytest.mark.parametrize("key", ["labels", "target_classes"])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (np.array([0, 1, 3, 5]), r"2 of 4 {} are no whole numbers in \[0, 3\), the first is 3 in row 2"),
        (np.array([0, -1, 2, 0]), "the first is -1 in row 1"),
        (np.array([0, 1, 0.5, 2]), "the first is 0.5 in row 2"),
        (np.array([0, np.nan, 1, 2]), "the first is nan in row 1"),
        (np.array([0, 1, 2]), r"{} have shape \(3,\), expected \(4,\)"),
        (np.zeros((4, 3), dtype=int), r"{} have shape \(4, 3\), expected \(4,\)"),
        (np.array(["a", "b", "c", "a"]), "are of type <U1"),
    ],
)
def test_labels_that_are_no_classes_are_refused(tmp_path, key, wrong, message):
    path = save_npz(tmp_path / "x.npz", inputs=np.zeros((4, 1), dtype=np.float32), **{key: wrong})
    with pytest.raises(InputError, match=message.format(key)):
        load(path, spec=spec_of(1))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_inputs_that_are_not_finite_are_counted_and_located(tmp_path, bad):
    inputs = np.zeros((9, 2, 2))
    inputs[2:, 1] = bad
    np.save(tmp_path / "x.npy", inputs)
    with pytest.raises(InputError, match="7 of 9 inputs hold NaN or infinity as float32, the first in row 2"):
        load(tmp_path / "x.npy", spec=spec_of(2, 2))


@pytest.mark.parametrize(
    ("inputs", "spec", "message"),
    [
        (np.zeros((2, 4)), spec_of(3), r"shape \(2, 4\) do not fit .*float32 \(\?, 3\); give them"),
        (np.zeros((2, 3, 1)), spec_of(3), r"shape \(2, 3, 1\) do not fit"),
        (np.zeros((2, 8, 9, 3)), spec_of(3, 8, 9), r"looks transposed: give inputs.transpose\(0, 3, 1, 2\)"),
        (np.zeros((2, 3, 8, 9)), spec_of(8, 9, 3), r"looks transposed: give inputs.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 3), dtype=np.int64), spec_of(3), "type int64 do not fit"),
        (np.zeros((2, 3), dtype=np.float32), spec_of(3, dtype="int64"), "type float32 do not fit"),
        (np.zeros((2, 3), dtype="<U3"), spec_of(3), "type <U3 do not fit"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), spec_of(3, 8, 8), r"give inputs.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 3, 8, 8), dtype=np.uint8), spec_of(None, 8, 8), r"give inputs.transpose\(0, 2, 3, 1\)"),
        (np.zeros((2, 8, 8), dtype=np.uint8), spec_of(3, 8, 8), "not images of 3 channels"),
        (np.zeros((2, 8, 8, 1), dtype=np.uint8), spec_of(3, 8, 8), "not images of 3 channels"),
        (np.zeros((2, 8), dtype=np.uint8), spec_of(3, 8, 8), r"give them as \(N, H, W, channels\)"),
    ],
)
def test_arrays_that_do_not_fit_the_model_are_refused(tmp_path, inputs, spec, message):
    np.save(tmp_path / "x.npy", inputs)
    with pytest.raises(InputError, match=message):
        load(tmp_path / "x.npy", spec=spec)
