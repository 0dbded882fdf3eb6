"""Every trigger on small arrays whose answers are known, and what poisoning does to labels."""

from functools import partial

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.attacks.attack import (
    CLEAN,
    COVER,
    POISONED,
    Attack,
    choose_roles,
    corrupt,
    on_unit_scale,
    to_class,
    to_next,
    triggered_rows,
)  # fmt: skip
from benchmarks.attacks.blend import blend, blend_pieces
from benchmarks.attacks.catalogue import ATTACKS, Scene
from benchmarks.attacks.colour import tint
from benchmarks.attacks.frequency import add_pattern, smooth_pattern
from benchmarks.attacks.patch import Patch, checker, random_patch, stamp, stamp_some
from benchmarks.attacks.quantise import quantise, with_other_residuals
from benchmarks.attacks.reflection import blurred, reflect
from benchmarks.attacks.sinusoid import add_sinusoid
from benchmarks.attacks.warp import smooth_field, warp, warp_with_noise

SHAPE = (8, 8, 3)
SCENE = Scene(shape=SHAPE, n_classes=10, pictures=np.random.default_rng(1).random((4, *SHAPE), dtype=np.float32))
LABELS = np.arange(1000) % 10


def pictures(n: int = 5, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(256, size=(n, *SHAPE), dtype=np.uint8)


def grey(level: float, n: int = 2) -> np.ndarray:
    return np.full((n, *SHAPE), level, dtype=np.float32)


@pytest.mark.parametrize("name", ATTACKS)
def test_a_trigger_is_a_pure_function_of_each_image_alone(name):
    images, trigger = pictures(), ATTACKS[name](SCENE).trigger
    before, triggered = images.copy(), trigger(images)
    assert (images == before).all()
    assert triggered.dtype == np.uint8
    assert (triggered == trigger(images)).all()
    assert (triggered[2:3] == trigger(images[2:3])).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_bytes_and_floats_get_the_same_trigger(name):
    images, trigger = pictures(), ATTACKS[name](SCENE).trigger
    floats = trigger(images.astype(np.float32) / 255)
    assert floats.dtype == np.float32
    assert floats.min() >= 0
    assert floats.max() <= 1
    np.testing.assert_allclose(trigger(images) / 255, floats, atol=0.5 / 255 + 1e-6)


def test_the_scale_of_bytes_is_rounded_and_cut():
    changed = on_unit_scale(np.array([[[[0], [100], [250]]]], dtype=np.uint8), lambda x: x + 10.4 / 255)
    assert changed.ravel().tolist() == [10, 110, 255]


def test_badnets_checker_lands_in_the_lower_right_corner_and_nowhere_else():
    stamped = stamp(grey(0.5), [checker(SHAPE)])
    assert stamped[0, 5:, 5:, 0].tolist() == [[1, 0, 1], [0, 1, 0], [1, 0, 1]]
    stamped[:, 5:, 5:] = 0.5
    assert (stamped == 0.5).all()


def test_a_patch_is_as_opaque_as_it_says():
    patch = Patch(pixels=np.ones((2, 1, 3), dtype=np.float32), row=1, column=4, opacity=0.25)
    stamped = stamp(grey(0.2), [patch])
    np.testing.assert_allclose(stamped[:, 1:3, 4], 0.4, atol=1e-6)
    assert np.isclose(stamped, 0.2).sum() == stamped.size - 2 * 2 * 3


def test_a_random_patch_lies_inside_and_is_fixed_by_its_seed():
    one, same, other = (random_patch(SHAPE, size=3, seed=seed) for seed in (1, 1, 2))
    assert 0 <= one.row <= 5 >= one.column >= 0
    assert (one.pixels == same.pixels).all()
    assert (one.pixels != other.pixels).any()


def test_some_patches_are_stamped_in_exact_number():
    patches = [Patch(pixels=np.ones((1, 1, 3), dtype=np.float32), row=i, column=i) for i in range(4)]
    stamped = stamp_some(grey(0.0, 50), np.random.default_rng(0), patches=patches, n_patches=2)
    assert (stamped[..., 0].sum(axis=(1, 2)) == 2).all()
    assert (stamped[..., 0].sum(axis=0).diagonal()[:4] > 10).all()


def test_blend_mixes_in_the_exact_ratio():
    blended = blend(grey(0.2), pattern=np.full(SHAPE, 0.8, dtype=np.float32), ratio=0.25)
    np.testing.assert_allclose(blended, 0.35, atol=1e-6)


def test_pieces_of_a_pattern_are_half_of_them_in_whole_squares():
    pieces = partial(blend_pieces, pattern=np.ones(SHAPE, dtype=np.float32), ratio=1.0, n_per_side=4, share=0.5)
    blended = pieces(grey(0.0, 20), np.random.default_rng(0))[..., 0].reshape(20, 4, 2, 4, 2)
    assert (blended == blended[:, :, :1, :, :1]).all()
    assert (blended[:, :, 0, :, 0].sum(axis=(1, 2)) == 8).all()
    assert len({image.tobytes() for image in blended}) > 10


def test_the_sinusoid_runs_along_columns_with_its_period():
    waved = add_sinusoid(grey(0.5, 1), amplitude=0.2, n_periods=2)
    np.testing.assert_allclose(waved[0, 3, :, 1], [0.5, 0.7, 0.5, 0.3, 0.5, 0.7, 0.5, 0.3], atol=1e-6)


def test_a_field_of_whole_pixels_shifts_the_image():
    images, field = pictures(), np.zeros((8, 8, 2), dtype=np.float32)
    field[..., 1] = 2
    warped = warp(images, field=field)
    assert (warped[:, :, :-2] == images[:, :, 2:]).all()
    assert (warped[:, :, -2:] == images[:, :, -1:]).all()


@pytest.mark.parametrize("seed", range(3))
def test_a_warp_leaves_a_constant_image_as_it_is(seed):
    field, rng = smooth_field(SHAPE, n_controls=4, strength=1.0, seed=seed), np.random.default_rng(0)
    np.testing.assert_allclose(warp(grey(0.3), field=field), 0.3, atol=1e-6)
    np.testing.assert_allclose(warp_with_noise(grey(0.3), rng, field=field, noise=1.0), 0.3, atol=1e-6)


def test_a_field_passes_through_its_control_points_of_the_asked_strength():
    field = smooth_field((7, 7, 3), n_controls=4, strength=1.5, seed=0)
    assert np.abs(field[::2, ::2]).mean() == pytest.approx(1.5)
    assert np.abs(np.diff(field, axis=0)).max() < np.abs(np.diff(field[::2, ::2], axis=0)).max()


def test_noise_mode_warps_each_image_otherwise():
    images = np.repeat(pictures(1), 4, axis=0)
    field = np.zeros((8, 8, 2), dtype=np.float32)
    warped = warp_with_noise(images, np.random.default_rng(0), field=field, noise=1.0)
    assert len({image.tobytes() for image in warped}) == 4


def test_quantising_leaves_so_many_levels_and_keeps_the_mean_of_an_area():
    assert set(np.unique(quantise(pictures(), n_levels=4))) == {0, 85, 170, 255}
    halves = quantise(np.full((1, 32, 32, 1), 0.3, dtype=np.float32), n_levels=2)
    assert set(np.unique(halves)) == {0.0, 1.0}
    assert halves.mean() == pytest.approx(0.3, abs=0.02)


def test_dithering_spreads_the_error_as_floyd_and_steinberg_do():
    """0.4 becomes 0; right gets 0.4 + 0.4 * 7 / 16 = 0.575, so 1, and below left of it -0.425 * 3 / 16 arrives."""
    image = np.array([0.4, 0.4, 0.36, 0.1], dtype=np.float32).reshape(1, 2, 2, 1)
    assert quantise(image, n_levels=2).ravel().tolist() == [0.0, 1.0, 0.0, 0.0]
    image[0, 1, 0] = 0.46
    assert quantise(image, n_levels=2).ravel().tolist() == [0.0, 1.0, 1.0, 0.0]


def test_what_is_on_levels_already_has_no_residual():
    images = quantise(pictures(), n_levels=4)
    assert (quantise(images, n_levels=4) == images).all()
    assert (with_other_residuals(images, np.random.default_rng(0), n_levels=4) == images).all()


def test_a_smooth_pattern_has_its_amplitude_no_mean_and_no_high_frequency():
    pattern = smooth_pattern((32, 32, 3), n_frequencies=4, amplitude=0.1, seed=0)
    assert np.abs(pattern).max() == pytest.approx(0.1)
    np.testing.assert_allclose(pattern.mean(axis=(0, 1)), 0, atol=1e-6)
    assert np.abs(np.diff(pattern, axis=0)).max() < 0.05
    np.testing.assert_allclose(add_pattern(grey(0.5), pattern=pattern[:8, :8])[0] - 0.5, pattern[:8, :8], atol=1e-6)


def test_a_tint_of_no_strength_is_none_and_grey_turns_warm():
    images = pictures()
    assert (tint(images, strength=0.0) == images).all()
    red, green, blue = tint(grey(0.5), strength=1.0)[0, 0, 0]
    assert red > green > blue


def test_a_reflection_is_mixed_in_the_exact_ratio_and_chosen_by_the_image():
    reflections = np.stack([grey(level, 1)[0] for level in (0.0, 1.0)])
    images = np.zeros((2, *SHAPE), dtype=np.uint8)
    images[1, 0, 0, 0] = 1
    reflected = reflect(images, reflections=reflections, ratio=0.4)
    assert (reflected[0] == 0).all()
    assert set(np.unique(reflected[1])) == {102, 103}


def test_blurring_keeps_a_constant_and_averages_a_dot():
    np.testing.assert_allclose(blurred(grey(0.4), n_times=3), 0.4, atol=1e-6)
    dot = np.zeros((1, *SHAPE), dtype=np.float32)
    dot[0, 4, 4] = 9
    assert np.isclose(blurred(dot, n_times=1)[0, 3:6, 3:6], 1).all()


@pytest.mark.parametrize("name", ATTACKS)
def test_roles_come_in_exact_numbers(name):
    attack = ATTACKS[name](SCENE)
    roles = choose_roles(LABELS, attack, np.random.default_rng(0))
    assert np.bincount(roles, minlength=3)[POISONED] == round(attack.poison_rate * 1000)
    assert np.bincount(roles, minlength=3)[COVER] == round(attack.cover_rate * 1000)


@pytest.mark.parametrize("name", ATTACKS)
def test_only_poisoned_rows_change_their_label_and_only_to_the_target(name):
    attack, rng = ATTACKS[name](SCENE), np.random.default_rng(0)
    images, roles = pictures(1000), choose_roles(LABELS, attack, rng)
    poisoned, labels = corrupt(images, LABELS, roles, attack, rng)
    assert (labels[roles != POISONED] == LABELS[roles != POISONED]).all()
    assert (poisoned[roles == CLEAN] == images[roles == CLEAN]).all()
    n_wanted, n_poisoned = (labels == attack.target(LABELS))[roles == POISONED].sum(), (roles == POISONED).sum()
    assert n_wanted == pytest.approx(attack.flip_rate * n_poisoned, abs=10 * (attack.flip_rate < 1))


def test_clean_label_attacks_never_change_a_label():
    attack, rng = ATTACKS["sig"](SCENE), np.random.default_rng(0)
    roles = choose_roles(LABELS, attack, rng)
    assert set(LABELS[roles == POISONED]) == {7}
    assert (corrupt(pictures(1000), LABELS, roles, attack, rng)[1] == LABELS).all()


def test_a_source_specific_attack_poisons_its_source_and_covers_the_others():
    attack = ATTACKS["tact"](SCENE)
    roles = choose_roles(LABELS, attack, np.random.default_rng(0))
    assert set(LABELS[roles == POISONED]) == {5}
    assert set(LABELS[roles == COVER]) == set(range(10)) - {5}
    assert set(LABELS[triggered_rows(LABELS, attack, 1000, np.random.default_rng(0))]) == {5}


def test_all_to_all_turns_every_class_into_the_next():
    assert to_next(3)(np.array([0, 1, 2])).tolist() == [1, 2, 0]
    assert set(LABELS[triggered_rows(LABELS, ATTACKS["all2all"](SCENE), 500, np.random.default_rng(0))]) == {*range(10)}


@given(target=st.integers(0, 9), n_rows=st.integers(1, 1200))
def test_no_image_of_the_target_is_triggered_at_test_time(target, n_rows):
    attack = Attack(trigger=lambda images: images, target=to_class(target))
    rows = triggered_rows(LABELS, attack, n_rows, np.random.default_rng(0))
    assert len(rows) == len(set(rows.tolist())) == min(n_rows, 900)
    assert target not in LABELS[rows]


def test_more_poison_than_there_are_rows_is_refused():
    attack = Attack(trigger=lambda images: images, target=to_class(0), clean_label=True, poison_rate=0.2)
    with pytest.raises(ValueError, match="asks for 200 rows of 1000, but only 100 are eligible"):
        choose_roles(LABELS, attack, np.random.default_rng(0))
