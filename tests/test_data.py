"""Loading from every source, sampling, and splitting."""

import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sample_sources import load, make_folder, make_tar, pixels_of, save_npz, spec_of

from calibrate.data import Preprocessing, Samples, split_samples
from calibrate.sites import Rows
from guard.errors import CalibrationError, InputError

SHARED = Path(__file__).parents[2] / "shared"


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "clean")


def test_a_folder_gives_the_pixels_and_the_rank_of_each_class_folder(folder):
    samples = load(folder)
    by_bytes = {p.tobytes(): k // 2 for k, p in enumerate(pixels_of(6, 4, 5, 3))}
    assert len(samples) == 6
    assert samples[:].shape == (6, 3, 4, 5)
    assert [by_bytes[p.tobytes()] for p in samples.raw] == samples.labels.tolist()


def test_the_same_images_are_the_same_samples_from_every_source(folder, tmp_path):
    labels = np.repeat([0, 1, 2], 2)
    npz = save_npz(tmp_path / "x.npz", inputs=pixels_of(6, 4, 5, 3), labels=labels)
    tars = [
        make_tar(tmp_path / "a.tar", folder),
        make_tar(tmp_path / "b.tar", folder, arcname="data/clean"),
        make_tar(tmp_path / "c.tar.gz", folder, mode="w:gz"),
        make_tar(tmp_path / "d.tgz", folder, arcname="clean", mode="w:gz"),
    ]
    expected = load(folder, limit=4)
    for path in (*tars, npz):
        samples = load(path, limit=4)
        np.testing.assert_array_equal(samples[:], expected[:])
        np.testing.assert_array_equal(samples.labels, expected.labels)


def test_target_classes_stay_with_their_inputs(tmp_path):
    inputs = np.arange(9, dtype=np.float32)[:, None]
    path = save_npz(tmp_path / "x.npz", inputs=inputs, labels=np.arange(9) % 3, target_classes=(np.arange(9) + 1) % 3)
    samples = load(path, spec=spec_of(1), limit=7).take(np.array([5, 1, 3]))
    rows = samples[:][:, 0].astype(int)
    np.testing.assert_array_equal(samples.labels, rows % 3)
    np.testing.assert_array_equal(samples.target_classes, (rows + 1) % 3)


def test_changing_the_inputs_handed_out_leaves_the_samples_alone(tmp_path):
    np.save(tmp_path / "x.npy", np.ones((4, 2), dtype=np.float32))
    samples = load(tmp_path / "x.npy", spec=spec_of(2))
    samples[0:2][:] = 7
    np.testing.assert_array_equal(samples[:], 1)


def test_samples_are_rows_and_index_arrays_select(folder):
    samples: Samples = load(folder)
    rows: Rows = samples
    picked = np.array([4, 0])
    np.testing.assert_array_equal(rows[2:4], samples.take(np.array([2, 3]))[:])
    np.testing.assert_array_equal(samples[picked], samples[:][picked])
    np.testing.assert_array_equal(samples.take(picked).labels, samples.labels[picked])


def test_progress_counts_every_image(folder):
    seen = []
    load(folder, limit=4, progress=lambda *call: seen.append(call))
    assert seen == [("read images", k, 4) for k in (1, 2, 3, 4)]


def test_a_draw_is_balanced_as_far_as_classes_have_enough(tmp_path):
    labels = np.repeat([0, 1, 2], [2, 40, 60])
    path = save_npz(tmp_path / "x.npz", inputs=np.zeros((102, 1), dtype=np.float32), labels=labels)
    assert np.bincount(load(path, spec=spec_of(1), limit=31).labels)[0] == 2
    assert sorted(np.bincount(load(path, spec=spec_of(1), limit=31).labels).tolist()) == [2, 14, 15]
    assert np.bincount(load(path, spec=spec_of(1), limit=95).labels).tolist() == [2, 40, 53]
    assert len(load(path, spec=spec_of(1), limit=500)) == 102


def test_a_draw_of_images_decodes_only_those_drawn(folder):
    samples = load(folder, limit=3)
    assert sorted(samples.labels.tolist()) == [0, 1, 2]


def test_the_same_seed_draws_the_same_and_another_seed_does_not(tmp_path):
    np.save(tmp_path / "x.npy", np.arange(100, dtype=np.float32)[:, None])
    one, same, other = (load(tmp_path / "x.npy", spec=spec_of(1), limit=50, seed=s)[:] for s in (3, 3, 4))
    np.testing.assert_array_equal(one, same)
    assert not np.array_equal(one, other)
    assert len(np.unique(one)) == 50


def test_the_draw_does_not_depend_on_the_order_of_files(folder, tmp_path):
    members = sorted((p for p in folder.rglob("*.png")), key=lambda p: p.name, reverse=True)
    with tarfile.open(tmp_path / "x.tar", "w") as tar:
        for path in members:
            tar.add(path, arcname=path.relative_to(folder))
    np.testing.assert_array_equal(load(tmp_path / "x.tar", limit=3)[:], load(folder, limit=3)[:])


def test_the_order_is_random_and_not_sorted_by_class(tmp_path):
    folder = make_folder(tmp_path / "clean", per_class=(8, 8, 8))
    for limit in (None, 12):
        labels = load(folder, limit=limit).labels
        assert not np.array_equal(labels, np.sort(labels))


@given(
    n=st.integers(5, 200),
    fractions=st.sampled_from([(0.4, 0.4, 0.2), (0.6, 0.2, 0.2), (1 / 3, 1 / 3, 1 / 3)]),
    seed=st.integers(0, 2**31),
)
def test_the_parts_of_a_split_are_disjoint_and_cover_everything(n, fractions, seed):
    samples = samples_of(n)
    split = split_samples(samples, fractions=fractions, seed=seed)
    parts = [part[:][:, 0].astype(int).tolist() for part in (split.bounds, split.threshold, split.held_out)]
    assert sorted(chain(*parts)) == list(range(n))
    assert all(abs(len(part) - f * n) <= 1 for part, f in zip(parts, fractions, strict=True))


def samples_of(n):
    raw = np.arange(n, dtype=np.float32)[:, None]
    return Samples(raw=raw, labels=None, target_classes=None, prepare=np.array, skipped=())


def test_a_split_is_random_and_repeatable():
    first, again, other = (split_samples(samples_of(100), seed=s).bounds[:] for s in (1, 1, 2))
    np.testing.assert_array_equal(first, again)
    assert not np.array_equal(first, other)
    assert not np.array_equal(first[:, 0], np.arange(40))


def test_a_split_without_enough_samples_is_refused():
    with pytest.raises(CalibrationError, match="2 samples cannot fill"):
        split_samples(samples_of(2), seed=0)


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.0), (0.5, 0.4, 0.2), (1.2, -0.1, -0.1)])
def test_fractions_that_are_no_shares_are_refused(fractions):
    with pytest.raises(InputError, match="positive and sum to 1"):
        split_samples(samples_of(50), fractions=fractions, seed=0)


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(folder, limit):
    with pytest.raises(InputError, match=f"limit {limit} leaves no samples"):
        load(folder, limit=limit)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.tar does not exist"):
        load(tmp_path / "nothing.tar")


def test_the_real_calibration_set_loads_whole_and_balanced():
    path = SHARED / "data" / "cifar10-calibration.tar"
    if not path.exists():
        pytest.skip("the CIFAR-10 calibration set is not here")
    samples = load(path, spec=spec_of(3, 32, 32), n_classes=10, preprocessing=Preprocessing(), limit=1005)
    assert samples.skipped == ()
    assert set(np.bincount(samples.labels).tolist()) == {100, 101}
    assert 0.4 < samples[:].mean() < 0.55
