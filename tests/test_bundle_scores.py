"""thresholds.npz holds the clean scores, and whatever else it holds is refused, however duly digested."""

import io
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
from bundles import bounded_model, clean_scores, manifest, original_model
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from guard.bundle import BOUNDED, ORIGINAL, THRESHOLDS, load_bundle, pack_scores, save_bundle
from guard.errors import BundleError


def with_thresholds(folder, content):
    """Save a bundle whose thresholds.npz holds other bytes, duly digested."""
    save_bundle(
        folder / "bundle", manifest(), {ORIGINAL: original_model(), BOUNDED: bounded_model(), THRESHOLDS: content}
    )
    return folder / "bundle"


def packed(**arrays):
    buffer = io.BytesIO()
    np.savez(buffer, **arrays)
    return buffer.getvalue()


def refusal(path):
    with pytest.raises(BundleError) as refused:
        load_bundle(path)
    assert "\n" not in str(refused.value)
    return str(refused.value)


def test_scores_are_packed_in_order_and_infinite_ones_are_kept(tmp_path):
    scores = np.where(np.arange(200) % 50 == 0, np.inf, np.arange(200.0))[::-1]
    loaded = load_bundle(with_thresholds(tmp_path, pack_scores(scores)))
    assert loaded.clean_scores.tolist() == sorted(scores.tolist())


@pytest.mark.parametrize(
    "content",
    [
        b"", b"garbage", b"PK\x03\x04" + bytes(40), pack_scores(clean_scores())[:-30],
        pack_scores(clean_scores())[:200],
        packed(scores=clean_scores()), packed(clean_scores=np.array([{"a": 1}], dtype=object)),
        packed(clean_scores=clean_scores()[::-1]), packed(clean_scores=clean_scores()[None]),
        packed(clean_scores=clean_scores().astype(np.float32)), packed(clean_scores=clean_scores().astype(">f8")),
        packed(clean_scores=np.arange(200)), packed(clean_scores=np.zeros(0)), packed(clean_scores=np.float64(1)),
        packed(clean_scores=np.array([np.nan])), packed(clean_scores=np.array([0.0, np.nan, 1.0])),
        packed(clean_scores=np.array(["a"] * 200)),
    ],
)  # fmt: skip
def test_scores_that_are_none_are_refused(tmp_path, content):
    assert "clean_scores" in refusal(with_thresholds(tmp_path, content))


def test_the_class_of_each_score_is_kept_beside_it_where_it_is_known(tmp_path):
    scores, classes = clean_scores()[::-1], np.arange(200) % 3
    loaded = load_bundle(with_thresholds(tmp_path, pack_scores(scores, classes)))
    assert loaded.clean_classes.tolist() == classes[::-1].tolist()


def test_a_bundle_need_not_tell_the_classes(tmp_path):
    assert load_bundle(with_thresholds(tmp_path, pack_scores(clean_scores()))).clean_classes is None


@pytest.mark.parametrize("classes", [np.zeros(199, int), np.full(200, 3), np.full(200, -1), np.zeros(200)])
def test_classes_that_are_none_are_refused(tmp_path, classes):
    content = packed(clean_scores=clean_scores(), predicted_class=classes)
    assert "predicted_class in thresholds.npz is not one of 3 classes" in refusal(with_thresholds(tmp_path, content))


def test_a_plain_array_in_place_of_the_scores_is_refused(tmp_path):
    buffer = io.BytesIO()
    np.save(buffer, clean_scores())
    assert "holds no clean_scores" in refusal(with_thresholds(tmp_path, buffer.getvalue()))


@pytest.mark.parametrize("shape", ["(10**12,)", "(1000000000000,)", f"({10**30},)", "(-1,)", "(" * 90 + ")" * 90])
def test_scores_whose_header_promises_more_than_there_is_are_refused(tmp_path, shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("clean_scores.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert "holds no clean_scores" in refusal(with_thresholds(tmp_path, buffer.getvalue()))


def test_pickles_are_never_opened(tmp_path):
    import pickle

    class Bomb:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "opened",))

    refusal(with_thresholds(tmp_path, pickle.dumps(Bomb())))
    refusal(with_thresholds(tmp_path, packed(clean_scores=np.array([Bomb()], dtype=object))))
    assert not (tmp_path / "opened").exists()


def test_scores_of_another_number_than_the_thresholds_name_are_refused(tmp_path):
    bundle = with_thresholds(tmp_path, pack_scores(clean_scores()[:-1]))
    assert "holds 199 scores" in refusal(bundle)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_scores_with_any_bytes_changed_are_refused_or_still_scores(tmp_path, data):
    content = bytearray(pack_scores(clean_scores()))
    for _ in range(data.draw(st.integers(1, 3))):
        content[data.draw(st.integers(0, len(content) - 1) | st.integers(0, 140))] = data.draw(st.integers(0, 255))
    bundle = with_thresholds(tmp_path, bytes(content))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            loaded = load_bundle(bundle)
        except BundleError:
            return
    assert loaded.clean_scores.shape == (200,)
