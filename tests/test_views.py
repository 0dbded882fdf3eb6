"""Views of an image: moved by a sixteenth of its side with its edges continued, and blurred by as much."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard.views import views

IMAGES = hnp.arrays(np.float32, st.tuples(*(st.integers(1, 40) for _ in range(4))), elements=st.floats(-4, 4, width=32))


def dot(side, row, column):
    image = np.zeros((1, 1, side, side), dtype=np.float32)
    image[0, 0, row, column] = 1
    return image


@pytest.mark.parametrize(("side", "step"), [(4, 1), (16, 1), (32, 2), (224, 14)])
def test_an_image_is_moved_by_a_sixteenth_of_its_side(side, step):
    moved, _ = views(dot(side, side // 2, side // 2), "nchw")
    assert np.array_equal(moved, dot(side, side // 2 + step, side // 2 + step))


def test_edges_are_continued():
    column = np.arange(32, dtype=np.float32).reshape(1, 1, 32, 1).repeat(32, axis=3)
    moved, blurred = views(column, "nchw")
    assert moved[0, 0, :5, 0].tolist() == [0, 0, 0, 1, 2]
    assert blurred[0, 0, [0, 1, -2, -1], 0].tolist() == [0.25, 1, 30, 30.75]


def test_a_dot_of_a_small_image_is_blurred_to_a_tent():
    _, blurred = views(dot(32, 8, 9), "nchw")
    tent = np.array([1, 2, 1]) / 4
    np.testing.assert_allclose(blurred[0, 0, 7:10, 8:11], np.outer(tent, tent))
    assert blurred.sum() == 1


@given(images=IMAGES)
def test_views_are_alike_in_form_and_range_whatever_the_layout(images):
    for one, other in zip(views(images, "nchw"), views(np.moveaxis(images, 1, -1), "nhwc"), strict=True):
        assert (one.shape, one.dtype) == (images.shape, images.dtype)
        assert images.min() - 1e-4 <= one.min() <= one.max() <= images.max() + 1e-4
        np.testing.assert_array_equal(np.moveaxis(other, -1, 1), one)


@given(value=st.floats(-4, 4, width=32, allow_subnormal=False), side=st.integers(1, 40))
def test_views_of_one_colour_are_that_colour(value, side):
    for view in views(np.full((2, 3, side, side), value, dtype=np.float32), "nchw"):
        np.testing.assert_allclose(view, value, rtol=1e-5, atol=1e-30)
