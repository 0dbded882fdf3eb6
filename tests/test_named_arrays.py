"""An .npz for a model with several inputs: an array by the name of each, all of one N."""

import numpy as np
import pytest
from texts import IDS, LENGTH, MASK, SPECS, load_texts, save_texts, texts, votes

from guard.errors import InputError
from guard.types import TensorSpec

CLEAN = texts(20, seed=7)


def test_arrays_and_labels_stay_together_through_draw_and_split(tmp_path):
    samples = load_texts(save_texts(tmp_path / "x.npz", 90), limit=40).take(np.arange(5, 30))
    assert len(samples) == 25
    assert votes(samples[:]).argmax(axis=1).tolist() == samples.labels.tolist()
    assert {name: array.shape for name, array in samples[3:7].items()} == {IDS: (4, LENGTH), MASK: (4, LENGTH)}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({MASK: None}, "holds 'input_ids', 'labels', but no array `attention_mask`; save one of shape (N, ...) for"),
        ({"inputs": CLEAN[IDS]}, "holds 'inputs', which is no input of the model; it takes input_ids, attention_mask"),
        ({MASK: CLEAN[MASK][:9]}, "attention_mask has 9 rows and input_ids has 20; give one row of each per sample"),
        ({MASK: CLEAN[MASK][:0]}, "attention_mask of shape (0, 8) are empty"),
        ({MASK: np.full((20, LENGTH), np.inf)}, "attention_mask hold NaN or infinity as float32"),
        ({MASK: CLEAN[MASK].astype(int)}, "attention_mask of type int64 do not fit the model's input attention_mask"),
        ({IDS: CLEAN[IDS][:, :5]}, "input_ids of shape (20, 5) do not fit the model's input input_ids"),
        ({"labels": np.zeros(19)}, "labels have shape (19,), expected (20,)"),
    ],
)
def test_an_npz_that_does_not_fit_is_refused_by_the_arrays_name(tmp_path, changes, message):
    with pytest.raises(InputError) as refusal:
        load_texts(save_texts(tmp_path / "x.npz", 20, **changes))
    assert message in str(refusal.value)


def test_one_array_and_images_are_refused_by_what_the_model_takes(tmp_path):
    np.save(tmp_path / "x.npy", CLEAN[IDS])
    (tmp_path / "images").mkdir()
    for name, message in (("x.npy", "no array `input_ids`"), ("images", "images only; the model takes input_ids, att")):
        with pytest.raises(InputError, match=message):
            load_texts(tmp_path / name)


def test_a_model_whose_input_is_called_labels_is_refused(tmp_path):
    specs = (SPECS[0], TensorSpec(name="labels", dtype="int64", shape=(None,)))
    with pytest.raises(InputError, match="has an input 'labels', which an"):
        load_texts(save_texts(tmp_path / "x.npz", 20), inputs=specs)
