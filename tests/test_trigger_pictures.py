"""Pictures of triggers: one row per distribution, whatever the family, layout and number of channels."""

import numpy as np
import pytest

from calibrate.inspection.trigger_families import TriggerKind, trigger_shape
from calibrate.inspection.trigger_pictures import trigger_picture
from calibrate.inspection.trigger_places import Places, corners_of
from calibrate.inspection.triggers import TriggerDistribution


def distribution(family, channels, channel_axis):
    kind = TriggerKind(family=family, size=3, strength=0.1)
    corners = corners_of((8, 8), 3)
    shape = trigger_shape(kind, (channels, 8, 8))
    return TriggerDistribution(
        kind=kind, target_class=0, beta=0.9, alpha=0.1, channel_axis=channel_axis,
        places=Places(corners=corners, weights=np.full(len(corners), 1 / len(corners))),
        bank=np.random.default_rng(0).random((8, *shape), dtype=np.float32),
    )  # fmt: skip


@pytest.mark.parametrize(("channels", "channel_axis"), [(1, 1), (3, 3), (5, 1)])
def test_every_family_is_drawn_in_a_row_of_its_own(channels, channel_axis):
    shape = (2, channels, 8, 8) if channel_axis == 1 else (2, 8, 8, channels)
    examples = np.random.default_rng(1).normal(size=shape).astype(np.float32)
    found = [distribution(family, channels, channel_axis) for family in ("patch", "blend", "warp")]
    picture = trigger_picture(found, examples)
    assert picture.startswith("<svg")
    # Two triggered examples each; six triggers of patch and blend, which are images; the patch's places.
    assert picture.count("<image") == 3 * 2 + 2 * 6 + 1


def test_images_of_one_value_can_be_drawn():
    assert trigger_picture([distribution("patch", 3, 1)], np.zeros((1, 3, 8, 8), np.float32)).startswith("<svg")


def test_the_same_triggers_give_the_same_picture():
    found, examples = [distribution("warp", 3, 1)], np.zeros((1, 3, 8, 8), np.float32)
    assert trigger_picture(found, examples) == trigger_picture(found, examples)
