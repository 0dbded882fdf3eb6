"""UNIT as published: which step decides, which bounds are kept, and what the loss adds up."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from small_graphs import exported
from torch_models import example_of
from unit_problems import two_classes

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.bounds.unit_published import PublishedUnitSettings as Settings
from calibrate.bounds.unit_published import fit_unit_published as fit
from calibrate.graph import find_sites
from calibrate.sites import BoundsProblem

pytestmark = pytest.mark.usefixtures("one_thread")


def test_the_accuracy_that_decides_is_measured_after_the_update():
    to_zero = Settings(steps=1, learning_rate=100.0, initial_cost=10.0)
    found = fit(two_classes(), settings=to_zero).settings
    assert found["original_accuracy"] > 0.8
    assert (found["n_passed"], found["validation_accuracy"]) == (0, 0.5)  # no activation is left


def test_of_the_bounds_that_pass_the_smallest_are_kept_not_the_last():
    loosening = Settings(steps=5, initial_cost=-1.0, cost_up=1.0, learning_rate=0.1)
    found = fit(two_classes(max_accuracy_drop=1.0), settings=loosening).settings
    assert (found["n_passed"], found["step"]) == (5, 1)


def test_smaller_bounds_that_fail_are_not_kept():
    found = fit(two_classes(), settings=Settings(learning_rate=0.2, steps=40, initial_cost=10.0)).settings
    assert 0 < found["n_passed"] < 40
    assert found["validation_accuracy"] >= found["original_accuracy"] - 0.03


def test_bounds_pass_that_cost_just_what_may_be_lost():
    still = Settings(steps=1, learning_rate=0.0, deviations=-10.0)
    first = fit(two_classes(), settings=still).settings
    drop = first["original_accuracy"] - first["validation_accuracy"]
    assert drop > 0.1
    for allowed, n_passed in ((drop, 1), (drop - 0.01, 0)):
        assert fit(two_classes(max_accuracy_drop=allowed), settings=still).settings["n_passed"] == n_passed


def test_the_penalty_is_the_sum_over_sites_of_the_mean_bound():
    model, inputs = exported("vgg", "torchscript", 17), example_of(20).numpy()
    problem = BoundsProblem(
        model=model, logits="logits", n_classes=10, sites=find_sites(model), inputs=inputs,
        labels=np.arange(20) % 2, max_accuracy_drop=1.0, seed=0, progress=lambda *_: None,
    )  # fmt: skip
    bounds = fit(problem, settings=Settings(steps=1))
    assert len(bounds.upper) > 1
    assert bounds.settings["penalty"] == pytest.approx(sum(u.mean() for u in bounds.upper.values()), rel=1e-5)


def test_the_first_term_is_the_mean_cross_entropy_of_the_clipped_network():
    problem = two_classes()
    bound = torch.full((1, 2, 3, 3), 0.7, requires_grad=True)
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=7)
    data = LabelledInputs.of(problem.inputs, problem.labels)
    loss = classifier.add_cross_entropy_gradients(data, {"a": bound})
    expected = F.cross_entropy(classifier.logits(data.inputs, {"a": bound}), data.labels)
    assert loss == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(bound.grad, torch.autograd.grad(expected, bound)[0])
