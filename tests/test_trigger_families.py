"""Triggers of each family on images whose answers are known."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from calibrate.inspection.trigger_families import TriggerKind, from_unit, put_on, trigger_shape
from calibrate.inspection.trigger_places import Places, corners_of, draw_corners

PATCH, BLEND, WARP = (
    TriggerKind(family=f, size=3, strength=s) for f, s in zip(("patch", "blend", "warp"), (1, 0.25, 0.1), strict=True)
)


def images(n=4, channels=2, side=8):
    return torch.rand(n, channels, side, side, generator=torch.Generator().manual_seed(0))


def no_places(n=4):
    return torch.zeros(n, 2, dtype=torch.long)


@given(size=st.integers(1, 6), height=st.integers(6, 9), width=st.integers(6, 9), seed=st.integers(0, 99))
def test_a_patch_overwrites_its_place_and_nothing_else(size, height, width, seed):
    kind, plain = TriggerKind(family="patch", size=size), torch.zeros(3, 2, height, width)
    corners = corners_of((height, width), size)
    everywhere = Places(corners=corners, weights=np.full(len(corners), 1 / len(corners)))
    places = draw_corners(everywhere, 3, np.random.default_rng(seed))
    triggered = put_on(kind, plain, torch.ones(3, 2, size, size), torch.from_numpy(places))
    assert triggered.sum() == 3 * 2 * size * size
    for image, (row, column) in zip(triggered, places, strict=True):
        assert (image[:, row : row + size, column : column + size] == 1).all()


def test_there_are_51_black_and_white_patterns_up_to_rotation_reflection_and_inversion():
    def alike(pattern):
        turned = [np.rot90(p, k) for p in (pattern, pattern.T) for k in range(4)]
        return min(int("".join(map(str, p.ravel() ^ flip)), 2) for p in turned for flip in (0, 1))

    patterns = (np.array([int(bit) for bit in f"{code:09b}"]).reshape(3, 3) for code in range(512))
    assert len({alike(pattern) for pattern in patterns}) == 51


def test_a_blend_mixes_by_its_strength():
    mixed = put_on(BLEND, images(side=3), torch.ones(4, 2, 3, 3), no_places())
    torch.testing.assert_close(mixed, 0.75 * images(side=3) + 0.25)


def test_a_blend_is_stretched_over_larger_images():
    mixed = put_on(BLEND, images(side=9), torch.ones(4, 2, 3, 3), no_places())
    torch.testing.assert_close(mixed, 0.75 * images(side=9) + 0.25)


def test_a_warp_without_displacement_changes_nothing():
    torch.testing.assert_close(put_on(WARP, images(), torch.zeros(4, 2, 3, 3), no_places()), images())


def test_a_warp_moves_pixels_by_shares_of_the_side():
    field = torch.zeros(4, 2, 3, 3)
    field[:, 0] = 1 / 7  # of a side of 8 pixels, whose centres are 7 apart
    moved = put_on(WARP, images(), field, no_places())
    torch.testing.assert_close(moved[..., :-1], images()[..., 1:])
    torch.testing.assert_close(moved[..., -1], images()[..., -1])


@pytest.mark.parametrize("kind", [PATCH, BLEND, WARP], ids=str)
def test_every_family_has_a_gradient_in_its_triggers(kind):
    unit = torch.full((4, *trigger_shape(kind, (2, 8, 8))), 0.6, requires_grad=True)
    low, high = torch.zeros(2, 1, 1), torch.ones(2, 1, 1)
    weights = torch.rand(4, 2, 8, 8, generator=torch.Generator().manual_seed(1))
    (put_on(kind, images(), from_unit(kind, unit, low, high), no_places()) * weights).sum().backward()
    assert (unit.grad.flatten(1).abs().sum(1) > 0).all()


def test_values_from_0_to_1_span_the_pixels_range_or_the_displacements():
    ends, low, high = (
        torch.tensor([0.0, 1.0]).reshape(2, 1, 1, 1),
        torch.full((2, 1, 1), -1.5),
        torch.full((2, 1, 1), 3),
    )
    assert from_unit(PATCH, ends, low, high).unique().tolist() == [-1.5, 3]
    assert from_unit(WARP, ends, low, high).unique().tolist() == pytest.approx([-0.1, 0.1])
