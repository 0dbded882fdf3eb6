"""Where patches may go, and how the places that work are learned."""

import numpy as np
import pytest

from calibrate.inspection.trigger_location import expected_success
from calibrate.inspection.trigger_places import PlaceChoice, Places, corners_of, draw_corners


def test_patches_may_go_to_every_place_with_the_last_row_and_column():
    corners = corners_of((6, 5), 3)
    assert {tuple(corner) for corner in corners} == {(row, column) for row in range(4) for column in range(3)}


def test_the_published_places_leave_out_the_last_row_and_column():
    corners = corners_of((6, 5), 3, as_published=True)
    assert {tuple(corner) for corner in corners} == {(row, column) for row in range(3) for column in range(2)}


def test_large_images_have_32_places_per_axis_with_both_ends():
    corners = corners_of((224, 300), 21)
    assert len(corners) == 32 * 32
    assert (corners.min(axis=0), corners.max(axis=0)) == (pytest.approx([0, 0]), pytest.approx([203, 279]))


def test_the_published_profile_draws_one_place_per_batch_and_learns_nothing():
    choice, rng = PlaceChoice(corners_of((6, 6), 3), np.ones(16), one_per_batch=True), np.random.default_rng(0)
    drawn = np.stack([choice.draw(8, rng) for _ in range(300)])
    assert (drawn == drawn[:, :1]).all()
    assert set(drawn[:, 0]) == set(range(16))
    choice.learn(drawn[0], np.zeros(8))
    assert choice.places().weights == pytest.approx(1 / 16)


def test_a_place_per_image_is_drawn_otherwise():
    drawn = PlaceChoice(corners_of((6, 6), 3), np.zeros(16)).draw(64, np.random.default_rng(0))
    assert len(set(drawn)) > 8


def test_the_place_that_works_is_found_whatever_was_expected():
    choice, rng = PlaceChoice(corners_of((8, 8), 3), np.linspace(0.5, 0, 36)), np.random.default_rng(0)
    for _ in range(100):
        chosen = choice.draw(32, rng)
        choice.learn(chosen, np.where(chosen == 35, 0.9, 0.1))
    assert choice.places().weights[35] > 0.95


def test_places_that_work_alike_stay_alike():
    choice, rng = PlaceChoice(corners_of((8, 8), 3), np.linspace(0, 0.3, 36)), np.random.default_rng(0)
    for _ in range(200):
        chosen = choice.draw(32, rng)
        choice.learn(chosen, np.full(32, 0.9))
    assert choice.places().weights == pytest.approx(1 / 36, rel=0.2)


def test_places_are_drawn_by_their_weights():
    places = Places(corners=np.array([[0, 0], [1, 2], [3, 3]]), weights=np.array([0, 0.25, 0.75]))
    drawn = draw_corners(places, 4000, np.random.default_rng(0))
    assert (drawn == [1, 2]).all(axis=1).mean() == pytest.approx(0.25, abs=0.03)
    assert not (drawn == [0, 0]).all(axis=1).any()


def test_success_is_expected_where_a_patch_covers_the_mask():
    mask = np.zeros((6, 6))
    mask[4:, 4:] = 0.5
    expected = expected_success(mask, corners_of((6, 6), 2), 2).reshape(5, 5)
    assert expected[4, 4] == 1
    assert expected[3, 3] == pytest.approx(0.25)
    assert expected[:3, :3].max() == 0
