"""Infinite bounds change nothing, from the graph that ships to the score that it gives."""

import numpy as np
import pytest
from model_runs import answers
from small_graphs import exported, values_of
from torch_models import FAMILIES, example_of

from calibrate.edit import check_edited, insert_bounds
from calibrate.graph import find_sites
from calibrate.sites import ActivationBounds, Site
from guard.scores import divergence
from guard.types import ModelRun

INPUTS = example_of(16).numpy()


def _per_channel(site: Site) -> tuple[int, ...]:
    return tuple(int(size or 1) if axis == site.channel_axis else 1 for axis, size in enumerate(site.shape))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("shape_of", [lambda _: (), _per_channel], ids=["one bound", "one per channel"])
def test_infinite_bounds_leave_logits_to_a_hundred_thousandth_and_no_divergence(family, shape_of):
    model = exported(family, "torchscript", 17)
    upper = {site.tensor: np.full(shape_of(site), np.inf, np.float32) for site in find_sites(model)}
    bounds = ActivationBounds(method="by-hand", settings={}, upper=upper)
    bounded = check_edited(insert_bounds(model, bounds, find_sites(model)))
    before, after = (values_of(m, "logits", INPUTS) for m in (model, bounded))
    np.testing.assert_allclose(after, before, rtol=0, atol=1e-5)
    assert np.abs(divergence(ModelRun(original=answers(before), bounded=answers(after)))).max() <= 2e-5
