"""Clean inputs in: every source, every bad input, sampling and splitting."""

import gzip
import io
import os
import shutil
import tarfile
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from calibrate.data import Preprocessing, Samples, load_samples, split_samples
from calibrate.sites import Rows
from guard.errors import CalibrationError, InputError
from guard.types import TensorSpec

SHARED = Path(__file__).parents[2] / "shared"
CLASSES = ("ant", "bee", "cat")
PLAIN = Preprocessing(scale=1.0)


def spec_of(*shape, dtype="float32"):
    return TensorSpec(name="input", dtype=dtype, shape=(None, *shape))


def load(path, *, spec=None, n_classes=3, preprocessing=PLAIN, limit=None, seed=0, progress=None):
    return load_samples(
        path,
        spec=spec or spec_of(3, 4, 5),
        n_classes=n_classes,
        preprocessing=preprocessing,
        limit=limit,
        seed=seed,
        progress=progress or (lambda stage, done, total: None),
    )


def pixels_of(n, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def save_png(path, pixels):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def make_folder(root, per_class=(2, 2, 2), size=(4, 5)):
    pixels = iter(pixels_of(sum(per_class), *size, 3))
    for name, n in zip(CLASSES, per_class, strict=True):
        (root / name).mkdir(parents=True)
        for k in range(n):
            save_png(root / name / f"{k:03}.png", next(pixels))
    return root


def make_tar(path, folder, arcname=".", mode="w"):
    with tarfile.open(path, mode) as tar:
        tar.add(folder, arcname=arcname)
    return path


def add_member(path, name, data=b"", **fields):
    with tarfile.open(path, "a") as tar:
        member = tarfile.TarInfo(name)
        member.size = len(data)
        for field, value in fields.items():
            setattr(member, field, value)
        tar.addfile(member, io.BytesIO(data))


def save_npz(path, **arrays):
    np.savez(path, **arrays)
    return path


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


def test_an_npy_of_images_has_no_labels(tmp_path):
    np.save(tmp_path / "x.npy", pixels_of(5, 4, 5, 3))
    samples = load(tmp_path / "x.npy")
    assert (len(samples), samples.labels, samples.target_classes) == (5, None, None)
    assert samples[:].shape == (5, 3, 4, 5)


def test_target_classes_stay_with_their_inputs(tmp_path):
    inputs = np.arange(9, dtype=np.float32)[:, None]
    path = save_npz(tmp_path / "x.npz", inputs=inputs, labels=np.arange(9) % 3, target_classes=(np.arange(9) + 1) % 3)
    samples = load(path, spec=spec_of(1), limit=7).take(np.array([5, 1, 3]))
    rows = samples[:][:, 0].astype(int)
    np.testing.assert_array_equal(samples.labels, rows % 3)
    np.testing.assert_array_equal(samples.target_classes, (rows + 1) % 3)


def test_nested_images_belong_to_the_first_level_and_other_files_are_ignored(folder):
    save_png(folder / "bee" / "deep" / "er" / "x.PNG", pixels_of(1, 4, 5, 3)[0])
    for name in (".DS_Store", "notes.txt", "._000.png"):
        (folder / "ant" / name).write_bytes(b"no image")
    (folder / ".cache").mkdir()
    samples = load(folder)
    assert np.bincount(samples.labels).tolist() == [2, 3, 2]
    assert samples.skipped == ()


def test_a_name_that_a_tar_holds_twice_counts_once_and_last(folder, tmp_path):
    path = make_tar(tmp_path / "x.tar", folder)
    newer = pixels_of(1, 4, 5, 3, seed=7)[0]
    save_png(folder / "ant" / "000.png", newer)
    add_member(path, "./ant/000.png", (folder / "ant" / "000.png").read_bytes())
    samples = load(path)
    assert len(samples) == 6
    assert any(np.array_equal(p, newer) for p in samples.raw)


def test_an_empty_class_folder_still_takes_its_rank(folder):
    shutil.rmtree(folder / "bee")
    (folder / "bee").mkdir()
    assert sorted(load(folder).labels.tolist()) == [0, 0, 2, 2]


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
    np.testing.assert_allclose(inputs, samples.raw[1:3] / 255.0, atol=np.finfo(dtype).eps)


@pytest.mark.parametrize(("channels", "mode"), [(1, "L"), (3, "RGB"), (4, "RGBA")])
def test_images_are_converted_to_the_models_channels(tmp_path, channels, mode):
    pixels = pixels_of(1, 4, 5, 3)[0]
    save_png(tmp_path / "clean" / "one" / "x.png", pixels)
    samples = load(tmp_path / "clean", n_classes=1, spec=spec_of(channels, 4, 5))
    expected = np.asarray(Image.fromarray(pixels).convert(mode)).reshape(1, 4, 5, channels)
    np.testing.assert_array_equal(samples.raw, expected)


def test_shrinking_averages_instead_of_dropping_pixels(tmp_path):
    stripes = np.zeros((1, 64, 64, 3), dtype=np.uint8)
    stripes[:, :, ::2] = 200
    np.save(tmp_path / "x.npy", stripes)
    shrunk = load(tmp_path / "x.npy", spec=spec_of(3, 8, 8))[:]
    assert shrunk.shape == (1, 3, 8, 8)
    np.testing.assert_allclose(shrunk, 100, atol=8)


def test_files_and_arrays_are_resized_alike(folder, tmp_path):
    np.save(tmp_path / "x.npy", load(folder).raw)
    from_files = load(folder, spec=spec_of(3, 7, 3))
    order = load(tmp_path / "x.npy")
    resized = load(tmp_path / "x.npy", spec=spec_of(3, 7, 3))
    assert from_files.raw.shape == (6, 7, 3, 3)
    back = [int(np.flatnonzero((load(folder).raw == p).all(axis=(1, 2, 3)))[0]) for p in order.raw]
    np.testing.assert_array_equal(resized.raw, from_files.raw[back])


def test_grey_arrays_are_one_channel(tmp_path):
    grey = pixels_of(3, 4, 5)
    np.save(tmp_path / "x.npy", grey)
    assert load(tmp_path / "x.npy", spec=spec_of(1, 4, 5))[:].shape == (3, 1, 4, 5)


def test_images_of_one_size_keep_it_where_the_model_leaves_it_free(folder):
    assert load(folder, spec=spec_of(3, None, None))[:].shape == (6, 3, 4, 5)


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


def test_a_uint8_model_gets_plain_pixels_from_images(folder):
    samples = load(folder, spec=spec_of(3, 4, 5, dtype="uint8"), preprocessing=Preprocessing())
    np.testing.assert_array_equal(samples[:], load(folder).raw.transpose(0, 3, 1, 2))


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
    return Samples(raw=raw, labels=None, target_classes=None, spec=spec_of(1), preprocessing=None, skipped=())


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


@pytest.mark.parametrize("limit", [0, -1])
def test_a_limit_below_one_is_refused(folder, limit):
    with pytest.raises(InputError, match=f"limit {limit} leaves no samples"):
        load(folder, limit=limit)


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"nothing\.tar does not exist"):
        load(tmp_path / "nothing.tar")


def test_folders_and_tars_without_images_are_refused(tmp_path):
    (tmp_path / "clean" / "ant").mkdir(parents=True)
    (tmp_path / "clean" / "ant" / "readme.txt").write_text("no image")
    for path in (tmp_path / "clean", make_tar(tmp_path / "x.tar", tmp_path / "clean")):
        with pytest.raises(InputError, match="holds no images"):
            load(path)


def test_another_number_of_class_folders_than_the_model_has_classes_is_refused(folder):
    with pytest.raises(InputError, match=r"3 class folders \('ant', 'bee', 'cat'\), the model has 10 classes"):
        load(folder, n_classes=10)


def test_an_image_outside_of_the_class_folders_is_refused(folder, tmp_path):
    save_png(folder / "stray.png", pixels_of(1, 4, 5, 3)[0])
    for path in (folder, make_tar(tmp_path / "x.tar", folder, arcname="data")):
        with pytest.raises(InputError, match=r"stray\.png' lies in no class folder"):
            load(path)


def test_numbered_folders_whose_name_order_is_not_their_value_order_are_refused(tmp_path):
    for k in range(11):
        save_png(tmp_path / "clean" / str(k) / "x.png", pixels_of(1, 4, 5, 3)[0])
    with pytest.raises(InputError, match="10 comes before 2; pad them"):
        load(tmp_path / "clean", n_classes=11)


def test_images_of_several_sizes_are_refused_where_the_model_leaves_the_size_free(folder):
    save_png(folder / "cat" / "wide.png", pixels_of(1, 4, 9, 3)[0])
    with pytest.raises(InputError, match=r"cat/wide\.png' is 4 x 9, others are 4 x 5.*must share one size"):
        load(folder, spec=spec_of(3, None, None))


def test_a_size_that_only_half_fits_is_refused(folder):
    with pytest.raises(InputError, match="4 x 5, the model takes height free, width 9"):
        load(folder, spec=spec_of(3, None, 9))


def test_images_for_a_model_that_takes_none_are_refused(folder):
    with pytest.raises(InputError, match="is no batch of images"):
        load(folder, spec=spec_of(16))


def test_a_layout_that_is_not_the_models_is_named(folder):
    with pytest.raises(InputError, match="32 channels in layout nchw; use layout nhwc"):
        load(folder, spec=spec_of(32, 32, 3))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        (spec_of(7, 4, 5), "takes 7 channels, images have 1, 3 or 4"),
        (spec_of(3, 4, 5, dtype="int8"), "do not fit the model's input"),
        (spec_of(3, 4, 5, dtype="object"), "neither floats nor integers"),
    ],
)
def test_a_model_that_images_cannot_feed_is_refused(folder, spec, message):
    with pytest.raises(InputError, match=message):
        load(folder, spec=spec)


def damage(folder, n, content=b"\x89PNG\r\n\x1a\n broken"):
    for k in range(n):
        (folder / "ant" / f"{k:03}.png").write_bytes(content)


def test_one_unreadable_image_among_a_hundred_is_named_and_skipped(tmp_path):
    folder = make_folder(tmp_path / "clean", per_class=(40, 30, 30))
    damage(folder, 1)
    samples = load(folder)
    assert samples.skipped == ("ant/000.png",)
    assert np.bincount(samples.labels).tolist() == [39, 30, 30]
    assert len(samples[:]) == 99
    labels = {p.tobytes(): k for k, p in enumerate(pixels_of(100, 4, 5, 3))}
    assert all((labels[p.tobytes()] >= 40) == (c > 0) for p, c in zip(samples.raw, samples.labels, strict=True))


def test_more_than_one_percent_unreadable_images_are_refused_by_name(tmp_path):
    folder = make_folder(tmp_path / "clean", per_class=(40, 30, 30))
    damage(folder, 2)
    with pytest.raises(InputError, match=r"2 of 100 images cannot be read.*ant/000\.png' \(.*ant/001\.png' \("):
        load(folder)


def test_images_that_are_all_unreadable_are_refused(folder):
    for path in folder.rglob("*.png"):
        path.write_bytes(b"")
    with pytest.raises(InputError, match=r"6 of 6 images cannot be read.*; \.\.\."):
        load(folder)


@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize("max_pixels", [7, 15])  # Pillow fails above twice its limit and warns below
def test_decompression_bombs_are_unreadable(folder, monkeypatch, max_pixels):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", max_pixels)
    with pytest.raises(InputError, match="decompression bomb"):
        load(folder)


def test_a_palette_with_transparency_is_read_without_a_warning(folder):
    image = Image.fromarray(pixels_of(1, 4, 5, 3)[0]).quantize(8)
    image.save(folder / "ant" / "000.png", transparency=b"\x00\x10")
    assert load(folder).skipped == ()


def test_a_pipe_named_like_an_image_does_not_hang_the_loading(folder):
    os.mkfifo(folder / "ant" / "pipe.png")
    with pytest.raises(InputError, match=r"ant/pipe\.png' \(no plain file\)"):
        load(folder)


def test_images_of_more_than_8_bits_are_not_clipped_but_refused(folder):
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(folder / "ant" / "000.png")
    with pytest.raises(InputError, match="more than 8 bits per channel"):
        load(folder)


@pytest.mark.parametrize("name", ["/ant/evil.png", "../evil.png", "ant/../../evil.png", "../notes.txt"])
def test_a_tar_that_points_outside_of_itself_is_refused_and_writes_nothing(folder, tmp_path, name):
    path = make_tar(tmp_path / "x.tar", folder)
    add_member(path, name, b"data")
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match="points outside of the archive"):
        load(path)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_links_and_devices_in_a_tar_are_never_followed(folder, tmp_path, kind):
    path = make_tar(tmp_path / "x.tar", folder)
    add_member(path, "./ant/link.png", type=kind, linkname=str(folder / "ant" / "000.png"))
    with pytest.raises(InputError, match=r"1 of 7 images cannot be read.*ant/link\.png' \(a link or device"):
        load(path)


def test_loading_a_tar_writes_nothing(folder, tmp_path):
    path = make_tar(tmp_path / "x.tar.gz", folder, mode="w:gz")
    before = sorted(tmp_path.rglob("*"))
    load(path)
    assert sorted(tmp_path.rglob("*")) == before


def test_a_truncated_tar_is_refused_wherever_it_is_cut(folder, tmp_path):
    whole = make_tar(tmp_path / "x.tar", folder).read_bytes()
    with tarfile.open(tmp_path / "x.tar") as tar:
        tar.getmembers()
        end = tar.offset
    for cut in range(0, end + 1, 256):
        (tmp_path / "cut.tar").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.tar (cannot be read|is cut off)"):
            load(tmp_path / "cut.tar")


def test_a_tar_with_a_damaged_header_is_refused(folder, tmp_path):
    path = make_tar(tmp_path / "x.tar", folder)
    with tarfile.open(path) as tar:
        middle = tar.getmembers()[4].offset
    data = bytearray(path.read_bytes())
    data[middle : middle + 512] = b"\xff" * 512
    path.write_bytes(data)
    with pytest.raises(InputError, match="cut off or damaged"):
        load(path)


def test_a_truncated_tar_gz_is_refused(folder, tmp_path):
    whole = make_tar(tmp_path / "x.tgz", folder, mode="w:gz").read_bytes()
    for cut in (5, len(whole) // 2, len(whole) - 60):
        (tmp_path / "cut.tgz").write_bytes(whole[:cut])
        with pytest.raises(InputError, match=r"cut\.tgz cannot be read as a tar"):
            load(tmp_path / "cut.tgz")


@pytest.mark.parametrize("content", [b"", b"hello, this is text", gzip.compress(b"text")])
def test_a_file_of_no_known_kind_is_refused(tmp_path, content):
    (tmp_path / "x.bin").write_bytes(content)
    with pytest.raises(InputError, match=r"give a folder of class folders, a \.tar of one"):
        load(tmp_path / "x.bin")


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


def test_the_real_calibration_set_loads_whole_and_balanced():
    path = SHARED / "data" / "cifar10-calibration.tar"
    if not path.exists():
        pytest.skip("the CIFAR-10 calibration set is not here")
    samples = load(path, spec=spec_of(3, 32, 32), n_classes=10, preprocessing=Preprocessing(), limit=1005)
    assert samples.skipped == ()
    assert set(np.bincount(samples.labels).tolist()) == {100, 101}
    assert 0.4 < samples[:].mean() < 0.55
