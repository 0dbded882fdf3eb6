"""Margins, the range that synthetic inputs have, and the climb to a large margin."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from calibrate.bounds.climbers import Climbers, Start, climb, renew_climbers, start_climbers
from calibrate.bounds.maximum_margin import InputRange, ascend, ascend_by_sign, margins
from calibrate.preprocessing import input_channel_axis

pytestmark = pytest.mark.usefixtures("one_thread")

HEAD = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
UNITS = torch.rand(20, 6, generator=torch.Generator().manual_seed(1))
CLASSES = torch.arange(20) % 3
LOGITS = hnp.arrays(np.float32, (5, 4), elements=st.floats(-100, 100, width=32))


def _curved(inputs: torch.Tensor) -> torch.Tensor:
    return (3 * inputs).sin() @ HEAD


def _unit_cube(shape=(1, 6)) -> InputRange:
    return InputRange(least=torch.zeros(shape), greatest=torch.ones(shape))


@given(LOGITS, st.lists(st.integers(0, 3), min_size=5, max_size=5))
def test_a_margin_is_the_class_against_the_best_other(logits, classes):
    expected = [row[c] - np.delete(row, c).max() for row, c in zip(logits, classes, strict=True)]
    found = margins(torch.from_numpy(logits), torch.tensor(classes))
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize("momentum", [0.0, 0.2])
def test_the_climb_is_that_of_an_optimiser_built_anew_at_every_step_whatever_its_momentum(momentum):
    units = UNITS.clone().requires_grad_()
    for _ in range(30):
        optimizer = torch.optim.SGD([units], lr=1e-2, momentum=momentum)
        optimizer.zero_grad()
        (-margins(_curved(units.clamp(0, 1)), CLASSES).sum()).backward()
        optimizer.step()
    found = ascend(_curved, UNITS, CLASSES, _unit_cube(), steps=30, learning_rate=1e-2)
    torch.testing.assert_close(found, units.detach().clamp(0, 1), rtol=0, atol=1e-6)


def test_both_climbs_reach_larger_margins_and_stay_in_range():
    within = _unit_cube()
    plain = ascend(_curved, UNITS, CLASSES, within, steps=50, learning_rate=1e-2)
    by_sign = ascend_by_sign(_curved, UNITS, CLASSES, within, steps=20, step=0.02)
    for found in (plain, by_sign):
        assert (margins(_curved(found), CLASSES) > margins(_curved(UNITS), CLASSES)).float().mean() > 0.9
        assert 0 <= found.min() <= found.max() <= 1


def test_steps_by_sign_do_not_depend_on_the_scale_of_the_logits():
    plain, scaled = (
        ascend_by_sign(lambda x, f=f: f * _curved(x), UNITS, CLASSES, _unit_cube(), steps=9, step=0.02)
        for f in (1, 1024)
    )
    torch.testing.assert_close(plain, scaled, rtol=0, atol=0)


def test_inputs_within_0_and_1_have_that_range():
    inputs = np.random.default_rng(0).uniform(0.2, 0.7, (9, 3, 4, 4)).astype(np.float32)
    within = InputRange.of(inputs, "cpu")
    assert within.least.unique().tolist() == [0]
    assert within.greatest.unique().tolist() == [1]


@pytest.mark.parametrize(("shape", "axes"), [((9, 3, 4, 4), (0, 2, 3)), ((9, 4, 4, 3), (0, 1, 2)), ((9, 5), (0,))])
def test_other_inputs_have_the_range_of_each_channel(shape, axes):
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    within = InputRange.of(inputs, "cpu")
    np.testing.assert_array_equal(within.least, inputs.min(axis=axes, keepdims=True))
    np.testing.assert_array_equal(within.greatest, inputs.max(axis=axes, keepdims=True))


@pytest.mark.parametrize(
    ("shape", "layout", "axis"),
    [
        ((9, 64, 8, 8), "nchw", 1),
        ((9, 8, 8, 3), "nchw", 3),
        ((9, 8, 8, 64), "nhwc", 3),
        ((9, 28, 28), "nchw", None),
        ((9, 6, 128), "nchw", 1),
        ((9, 4, 5, 6, 7), "nchw", 1),
        ((9, 5), "nhwc", 1),
    ],
)
def test_the_channels_are_where_the_layout_or_the_size_says(shape, layout, axis):
    assert input_channel_axis(shape, layout) == axis
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    assert InputRange.of(inputs, "cpu", layout=layout).least.numel() == (1 if axis is None else shape[axis])


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_inputs_come_back_from_their_units_in_the_models_type(dtype):
    inputs = np.random.default_rng(0).normal(size=(9, 3, 4, 4)).astype(dtype)
    inputs[:, 1] = 5.0
    within = InputRange.of(inputs, "cpu")
    units = within.units_of(torch.from_numpy(inputs))
    found = within.inputs_of(units).numpy()
    assert found.dtype == dtype
    assert 0 <= units.min() <= units.max() <= 1
    np.testing.assert_allclose(found, inputs, atol=5e-3 if dtype == np.float16 else 1e-5)


def _start(seed: int = 0) -> Start:
    generator = torch.Generator().manual_seed(seed)
    return Start(clean=torch.full((4, 6), 0.25), within=_unit_cube(), n_classes=3, generator=generator)


def test_half_of_the_climbers_start_from_clean_inputs():
    climbers = start_climbers(_start(), 9)
    assert climbers.units.shape == (9, 6)
    assert (climbers.units == 0.25).all(dim=1).tolist() == [False] * 4 + [True] * 5
    assert climbers.classes.max() < 3


def test_the_quarter_that_has_climbed_longest_is_renewed():
    start = _start()
    old = start_climbers(start, 8)
    new = renew_climbers(start, old, 8)
    torch.testing.assert_close(new.units[:6], old.units[2:], rtol=0, atol=0)
    torch.testing.assert_close(new.classes[:6], old.classes[2:], rtol=0, atol=0)
    assert new.units.shape == old.units.shape


def test_climbers_whose_gradient_is_no_number_are_dropped_and_made_up_for():
    def rooted(inputs: torch.Tensor) -> torch.Tensor:
        return (inputs - 0.2).sqrt() @ HEAD

    climbed = climb(rooted, Climbers(units=UNITS, classes=CLASSES), _unit_cube(), steps=1, step=1e-4)
    is_number = (UNITS > 0.2).all(1)
    assert 0 < len(climbed.units) == is_number.sum()
    torch.testing.assert_close(climbed.classes, CLASSES[is_number], rtol=0, atol=0)
    assert len(renew_climbers(_start(), climbed, 20).units) == 20


def test_a_crowd_climbs_as_each_of_it_does_alone():
    units = torch.rand(230, 6, generator=torch.Generator().manual_seed(2))
    crowd = Climbers(units=units, classes=torch.arange(230) % 3)
    together = climb(_curved, crowd, _unit_cube(), steps=3, step=0.05)
    alone = ascend_by_sign(_curved, units[228:], crowd.classes[228:], _unit_cube(), steps=3, step=0.05)
    torch.testing.assert_close(together.units[228:], alone, rtol=0, atol=1e-6)
