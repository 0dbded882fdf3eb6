"""Decoding and resizing images, and what is done about unreadable ones."""

import numpy as np
import pytest
from PIL import Image
from sample_sources import load, make_folder, pixels_of, save_png, spec_of

from guard.errors import InputError


@pytest.fixture
def folder(tmp_path):
    return make_folder(tmp_path / "clean")


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


def test_images_of_several_sizes_are_refused_where_the_model_leaves_the_size_free(folder):
    save_png(folder / "cat" / "wide.png", pixels_of(1, 4, 9, 3)[0])
    with pytest.raises(InputError, match=r"cat/wide\.png' is 4 x 9, others are 4 x 5.*must share one size"):
        load(folder, spec=spec_of(3, None, None))


def test_a_size_that_only_half_fits_is_refused(folder):
    with pytest.raises(InputError, match="4 x 5, the model takes height free, width 9"):
        load(folder, spec=spec_of(3, None, 9))


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


def test_images_of_more_than_8_bits_are_not_clipped_but_refused(folder):
    Image.fromarray(np.full((4, 5), 40_000, dtype=np.uint16)).save(folder / "ant" / "000.png")
    with pytest.raises(InputError, match="more than 8 bits per channel"):
        load(folder)
