"""Where bounds bite, and exactly that place hidden."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.places import excess_map, hide, strongest_place

FRACTIONS = st.floats(0, 1, exclude_max=True)


def one_image(side=8, channels=2):
    return np.arange(channels * side * side, dtype=np.float32).reshape(1, channels, side, side)


def hidden_at(y, x, *, share=0.25, images=None, fill=(-1.0, -2.0)):
    """Return where an image is hidden, as rows and columns from to."""
    images = one_image() if images is None else images
    found = hide(images, np.array([[y, x]]), share=share, fill=np.array(fill), layout="nchw")
    changed = (found != images).all(axis=1)[0]
    rows, columns = (np.flatnonzero(changed.any(axis=a)) for a in (1, 0))
    assert changed.sum() == len(rows) * len(columns)
    assert (found[0, :, changed] == fill).all()
    return (rows[0], rows[-1] + 1), (columns[0], columns[-1] + 1)


@pytest.mark.parametrize(
    ("place", "rows", "columns"),
    [
        ((0.5, 0.5), (3, 5), (3, 5)),
        ((0.0, 0.0), (0, 2), (0, 2)),
        ((0.99, 0.0), (6, 8), (0, 2)),
        ((0.0, 0.99), (0, 2), (6, 8)),
        ((0.3125, 0.75), (1, 3), (5, 7)),
    ],
)
def test_the_square_round_a_place_is_filled_and_moved_inside(place, rows, columns):
    assert hidden_at(*place) == (rows, columns)


@pytest.mark.parametrize(("share", "side"), [(0.01, 1), (0.125, 1), (0.13, 2), (0.4375, 4), (1.0, 8)])
def test_the_side_is_the_share_of_the_shorter_side_rounded_up(share, side):
    (top, bottom), (left, right) = hidden_at(0.5, 0.5, share=share)
    assert (bottom - top, right - left) == (side, side)


def test_a_long_image_is_hidden_by_its_shorter_side():
    wide = np.arange(64, dtype=np.float32).reshape(1, 1, 4, 16)
    assert hidden_at(0.5, 0.5, share=0.5, images=wide, fill=(-1.0,)) == ((1, 3), (7, 9))


def test_every_image_has_its_own_place():
    places = np.array([[0.0, 0.0], [0.99, 0.99]])
    found = hide(np.ones((2, 1, 4, 4)), places, share=0.25, fill=np.zeros(1), layout="nchw")
    assert [np.argwhere(image[0] == 0).tolist() for image in found] == [[[0, 0]], [[3, 3]]]


SHAPES = st.tuples(*map(st.integers, (1, 1, 1, 1), (3, 3, 9, 9)))


@given(
    images=hnp.arrays(np.float32, SHAPES, elements={"min_value": -9, "max_value": 9}),
    share=st.floats(0.01, 1),
    data=st.data(),
)
def test_hiding_changes_one_square_of_a_copy_whatever_the_layout(images, share, data):
    n, channels, height, width = images.shape
    places = np.array([[data.draw(FRACTIONS), data.draw(FRACTIONS)] for _ in range(n)])
    fill, before = np.full(channels, 1e6), images.tobytes()
    found = hide(images, places, share=share, fill=fill, layout="nchw")
    last = hide(images.transpose(0, 2, 3, 1), places, share=share, fill=fill, layout="nhwc")
    assert images.tobytes() == before
    assert last.transpose(0, 3, 1, 2).tobytes() == found.tobytes()
    is_filled = (found == 1e6).all(axis=1)
    side = math.ceil(share * min(height, width))
    assert (is_filled.any(axis=2).sum(axis=1) == side).all()
    assert (is_filled.sum(axis=(1, 2)) == side**2).all()
    np.testing.assert_array_equal(np.where(is_filled[:, None], images, found), images)


@given(
    cell=st.tuples(st.integers(0, 4), st.integers(0, 6)),
    cold=hnp.arrays(np.float64, (5, 7), elements=st.floats(0, 1)),
)
def test_the_strongest_place_is_the_middle_of_the_hottest_cell(cell, cold):
    cold[cell] = 2
    np.testing.assert_allclose(strongest_place(cold[None]), [[(cell[0] + 0.5) / 5, (cell[1] + 0.5) / 7]])


def test_places_are_found_row_by_row():
    excess = np.zeros((2, 4, 4))
    excess[0, 1, 2] = excess[1, 3, 0] = 1
    assert strongest_place(excess).tolist() == [[0.375, 0.625], [0.875, 0.125]]


def test_excess_counts_by_its_logarithm_and_coarser_maps_are_spread_over_their_cells():
    fine, coarse = np.zeros((1, 4, 4), np.float32), np.zeros((1, 2, 2), np.float32)
    fine[0, 0, 1], coarse[0, 0, 1] = np.e - 1, np.e**2 - 1
    expected = np.array([[0, 1, 2, 2], [0, 0, 2, 2], [0, 0, 0, 0], [0, 0, 0, 0]])
    np.testing.assert_allclose(excess_map([fine, coarse])[0], expected, rtol=1e-6)
    np.testing.assert_allclose(excess_map([coarse, fine])[0], expected, rtol=1e-6)


@pytest.mark.parametrize(("side", "counts"), [(2, True), (1, False)])
def test_maps_more_than_four_times_coarser_than_the_finest_place_nothing(side, counts):
    found = excess_map([np.zeros((1, 8, 8)), np.ones((1, side, side))])
    assert (found.max() > 0) == counts


def test_sides_that_do_not_divide_each_other_are_joined_cell_by_cell():
    coarse = np.log1p(np.arange(4.0)).reshape(1, 2, 2)
    found = excess_map([np.zeros((1, 3, 5)), np.expm1(coarse)])[0]
    rows, columns = np.array([0, 0, 1]), np.array([0, 0, 0, 1, 1])
    np.testing.assert_allclose(found, coarse[0][rows][:, columns])
