"""Common corruptions of images."""

import numpy as np
import pytest

from benchmarks.corruptions import CORRUPTIONS, SEVERITIES, corrupt
from benchmarks.warps import blur_along, plasma, scatter, zoom_in
from guard.errors import InputError


def rng(seed=0):
    return np.random.default_rng(seed)


def smooth_images(n=2, size=32):
    """Return images of a few soft blobs, not unlike photographs."""
    down, right = np.mgrid[:size, :size] / size
    planes = [np.sin(4 * (k + 1) * down + 7 * right + i) for i in range(n) for k in range(3)]
    return np.uint8(np.moveaxis(127 + 100 * np.array(planes).reshape(n, 3, size, size), 1, -1))


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_is_made_from_the_image_whatever_was_corrupted_before(name):
    images = smooth_images()
    alone = [corrupt(images, name, severity, rng(severity)) for severity in SEVERITIES]
    for other in CORRUPTIONS:
        corrupt(images, other, 5, rng())
    np.testing.assert_array_equal(images, smooth_images())
    again = [corrupt(images, name, severity, rng(severity)) for severity in reversed(SEVERITIES)][::-1]
    np.testing.assert_array_equal(alone, again)


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_a_corruption_changes_images_moderately_and_keeps_their_form(name):
    images = smooth_images(8)
    for severity in SEVERITIES:
        corrupted = corrupt(images, name, severity, rng())
        assert (corrupted.shape, corrupted.dtype) == (images.shape, np.uint8)
        assert 0.05 < np.abs(corrupted - images.astype(float)).mean() < 110


@pytest.mark.parametrize("name", sorted(CORRUPTIONS.keys() - {"elastic_transform"}))
def test_the_last_severity_changes_more_than_the_first(name):
    images = np.concatenate([smooth_images(8), rng().integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)])
    first, last = (np.abs(corrupt(images, name, s, rng()) - images.astype(float)).mean() for s in (1, 5))
    assert last > first


def test_there_are_fifteen():
    assert len(CORRUPTIONS) == 15


def test_the_first_of_a_batch_is_corrupted_as_if_alone_where_nothing_is_drawn():
    images = smooth_images(3)
    for name in ("defocus_blur", "zoom_blur", "brightness", "contrast", "pixelate", "jpeg_compression"):
        np.testing.assert_array_equal(corrupt(images, name, 3, rng())[:1], corrupt(images[:1], name, 3, rng()))


def test_noise_has_the_published_strength():
    grey = np.full((64, 32, 32, 3), 128, np.uint8)
    assert corrupt(grey, "gaussian_noise", 5, rng()).std() == pytest.approx(25.5, rel=0.01)
    assert corrupt(grey, "shot_noise", 5, rng()).std() == pytest.approx(255 * (128 / 255 / 50) ** 0.5, rel=0.01)
    values, counts = np.unique(corrupt(grey, "impulse_noise", 5, rng()), return_counts=True)
    assert values.tolist() == [0, 128, 255]
    assert counts / grey.size == pytest.approx([0.035, 0.93, 0.035], abs=0.002)


def test_brightness_keeps_the_ratio_of_channels_and_lifts_black_to_grey():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, 0] = (100, 50, 0)
    found = corrupt(image, "brightness", 2, rng())
    assert found[0, 0, 0].tolist() == [126, 63, 0]
    assert found[0, 1, 1].tolist() == [26, 26, 26]


def test_contrast_shrinks_to_the_mean_of_a_channel():
    image = np.zeros((1, 2, 2, 3), np.uint8)
    image[0, 0, :, 1] = 200
    assert corrupt(image, "contrast", 2, rng())[0, :, 0, 1].tolist() == [150, 50]


def test_blurs_leave_a_plain_image_as_it_is():
    plain = np.full((2, 32, 32, 3), 77, np.uint8)
    for name in CORRUPTIONS.keys() & {"defocus_blur", "glass_blur", "motion_blur", "zoom_blur", "elastic_transform"}:
        np.testing.assert_array_equal(corrupt(plain, name, 5, rng()), plain)


def test_scattering_moves_pixels_by_one_a_round_and_leaves_the_first_two_rows_and_columns():
    places = np.moveaxis(np.indices((8, 8)), 0, -1)[None].astype(float)
    moved = places - scatter(places, rounds=1, rng=rng())
    assert set(moved.ravel()) == {0.0, 1.0}
    assert not moved[:, :2, :, 0].any()
    assert not moved[:, :, :2, 1].any()
    assert (places - scatter(places, rounds=2, rng=rng())).max() == 2.0


def test_a_blur_along_a_row_spreads_a_point_to_one_side_by_half_a_gaussian():
    point = np.zeros((1, 5, 9, 1))
    point[0, 2, 4] = 1.0
    found = blur_along(point, length=2, sigma=1.0, angles=np.array([0.0]))[0, 2, :, 0]
    weights = np.exp([-2.0, -0.5, 0.0]) / np.exp([-2.0, -0.5, 0.0]).sum()
    np.testing.assert_allclose(found, [0, 0, *weights, 0, 0, 0, 0], atol=1e-12)


def test_zooming_by_one_changes_nothing_and_by_two_shows_the_middle():
    image = np.zeros((1, 8, 8, 1))
    image[:, 2:6, 2:6] = 1.0
    np.testing.assert_array_equal(zoom_in(image, 1.0), image)
    np.testing.assert_allclose(zoom_in(image, 2.0), 1.0)


def test_plasma_fills_the_unit_interval_and_is_smoother_the_faster_it_decays():
    rough, smooth = (plasma(20, size=32, decay=decay, rng=rng()) for decay in (1.2, 3.0))
    assert (rough.min(), rough.max(), rough.shape) == (0.0, 1.0, (20, 32, 32))
    assert np.abs(np.diff(smooth)).mean() < 0.5 * np.abs(np.diff(rough)).mean()


@pytest.mark.parametrize(
    ("images", "name", "severity", "told"),
    [
        (np.zeros((1, 32, 32, 3)), "fog", 1, "float64"),
        (np.zeros((32, 32, 3), np.uint8), "fog", 1, r"\(32, 32, 3\)"),
        (np.zeros((1, 32, 32, 3), np.uint8), "rain", 1, "no corruption 'rain'"),
        (np.zeros((1, 32, 32, 3), np.uint8), "fog", 6, "severity is 6"),
    ],
)
def test_what_cannot_be_corrupted_is_refused(images, name, severity, told):
    with pytest.raises(InputError, match=told):
        corrupt(images, name, severity, rng())
