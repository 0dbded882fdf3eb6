"""MMAC as published: the numbers that prove a port equal to the official code."""

from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from unit_problems import problem_of, two_classes, with_fixed_batch

from calibrate.bounds import mmac_published
from calibrate.bounds.clipped_classifier import ClippedClassifier
from calibrate.bounds.maximum_margin import margins
from calibrate.bounds.mmac_published import fit_mmac_published, next_cost, objective_gradients
from calibrate.bounds.mmac_settings import PublishedMmacSettings
from calibrate.sites import BoundsProblem, Site
from guard.errors import CalibrationError

pytestmark = pytest.mark.usefixtures("one_thread")

QUICK = {"epochs": 3, "images_per_class": 4, "ascent_steps": 5}


def _fit(problem: BoundsProblem, **changes):
    return fit_mmac_published(problem, settings=PublishedMmacSettings(**{**QUICK, **changes}))


def _easy(n: int = 12) -> BoundsProblem:
    """Return two classes that stay apart whatever the bounds, as long as these are positive."""
    inputs = np.zeros((n, 2))
    inputs[np.arange(n), np.arange(n) % 2] = 5
    return problem_of(inputs, np.arange(n) % 2, np.eye(2))


def _classifier(problem: BoundsProblem) -> ClippedClassifier:
    return ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)


def test_infinite_bounds_leave_logits_and_margins():
    problem = two_classes()
    inputs, classes = torch.from_numpy(problem.inputs), torch.from_numpy(problem.labels)
    original, bounded = (_classifier(problem).logits(inputs, upper) for upper in ({}, {"a": torch.tensor(np.inf)}))
    torch.testing.assert_close(bounded, original, rtol=0, atol=1e-5)
    torch.testing.assert_close(margins(bounded, classes), margins(original, classes), rtol=0, atol=1e-5)


def test_the_cost_after_26_checks_that_all_pass_is_the_official_codes():
    settings = PublishedMmacSettings()
    checks = [epoch for epoch in range(settings.epochs) if settings.checks_at(epoch)]
    assert (len(checks), checks[0], checks[-1]) == (26, 40, 290)
    cost = settings.initial_cost
    for _ in checks:
        cost = next_cost(cost, passed=True, settings=settings)
    assert cost == pytest.approx(0.22895, abs=1e-5)


def test_a_check_that_fails_divides_the_cost():
    assert next_cost(0.12, passed=False, settings=PublishedMmacSettings()) == pytest.approx(0.1)


@pytest.mark.parametrize(("epochs", "cost"), [(40, 0.002), (41, 0.0024), (50, 0.0024), (51, 0.00288)])
def test_the_cost_moves_after_epochs_40_50_and_so_on(epochs, cost):
    assert _fit(_easy(), epochs=epochs).settings["final_cost"] == pytest.approx(cost)


def test_a_training_accuracy_below_the_one_to_keep_lowers_the_cost():
    bounds = _fit(_easy(), epochs=1, first_check=0, keep_accuracy=1.1)
    assert bounds.settings["final_cost"] == pytest.approx(0.002 / 1.2)


@pytest.mark.parametrize("granularity", [1, 3])
def test_every_channel_starts_at_1_at_any_size(granularity):
    problem = two_classes(shape=(2, granularity, granularity))
    upper = _fit(problem, learning_rate=0.0).upper["a"]
    np.testing.assert_array_equal(upper, np.ones((1, 2, 1, 1)))


def test_the_channels_of_a_free_axis_are_counted():
    site = Site(tensor="a", function="Relu", shape=(None, None, 3, 3), channel_axis=1)
    assert _fit(two_classes(sites=(site,)), epochs=1).upper["a"].shape == (1, 2, 1, 1)


def test_the_last_bounds_are_kept():
    first_step = _fit(_easy(), epochs=1).upper["a"]
    np.testing.assert_allclose(np.abs(first_step - 1), 0.1, rtol=1e-4)  # of Adam, whatever the gradient


def test_the_squared_error_pushes_bounds_back_to_where_clean_inputs_are():
    assert _fit(_easy(), epochs=200, initial_cost=1e-9).upper["a"].min() > 4.5


def test_bounds_may_turn_negative():
    assert _fit(_easy(), epochs=60, initial_cost=100.0, first_check=1000).upper["a"].min() < 0


def test_synthetic_inputs_climb_on_the_original_and_not_on_the_bounded_model():
    """On the bounded model the other class stays above its bound in half of them, and the bounds would rise."""
    inputs = np.eye(2)[np.arange(12) % 2]
    settings = {"epochs": 1, "initial_bound": 0.5, "initial_cost": 0.007, "images_per_class": 50, "ascent_steps": 150}
    upper = _fit(problem_of(inputs, np.arange(12) % 2, np.eye(2)), **settings).upper["a"]
    # Pull up: 2 (1 - .5) in half of the rows, over two classes, .25; push down: .007 * 50 = .35, or half of it.
    np.testing.assert_allclose(upper, 0.4, rtol=1e-4)


def test_the_accuracy_that_moves_the_cost_is_the_bounded_models():
    found = _fit(_easy(), epochs=1, first_check=0, initial_bound=0.0, learning_rate=0.0).settings
    assert found["training_accuracy"] == 0.5  # no activation is left
    assert found["final_cost"] == pytest.approx(0.002 / 1.2)


def test_the_defaults_are_the_official_codes():
    assert asdict(PublishedMmacSettings()) == {
        "epochs": 300, "batch_size": 200, "learning_rate": 0.1, "initial_bound": 1.0, "images_per_class": 50,
        "ascent_steps": 300, "ascent_learning_rate": 1e-2, "refresh_every": 100, "initial_cost": 0.002,
        "cost_factor": 1.2, "keep_accuracy": 0.95, "first_check": 40, "check_every": 10,
    }  # fmt: skip


def test_five_hundred_synthetic_inputs_come_in_batches_of_200_200_and_100_beside_the_clean_ones(monkeypatch):
    sizes = []

    def recorded(classifier, upper, clean, synthetic, cost):
        sizes.append((len(clean[0]), len(synthetic[0])))
        return objective_gradients(classifier, upper, clean, synthetic, cost)

    monkeypatch.setattr(mmac_published, "objective_gradients", recorded)
    rows = np.arange(500) % 10
    settings = PublishedMmacSettings(epochs=2, ascent_steps=1)
    fit_mmac_published(problem_of(5 * np.eye(10)[rows], rows, np.eye(10)), settings=settings)
    assert sizes == 2 * [(200, 200), (200, 200), (100, 100)]


def _gradient(n_copies: int, cost: float) -> tuple[float, torch.Tensor]:
    problem = two_classes()
    clean = torch.from_numpy(problem.inputs)
    bound = torch.full((1, 2, 1, 1), 0.7, requires_grad=True)
    synthetic = clean[:5].repeat(n_copies, 1, 1, 1), torch.zeros(5 * n_copies, dtype=torch.int64)
    classifier = _classifier(problem)
    with torch.no_grad():
        targets = classifier.logits(clean, {})
    loss, _ = objective_gradients(classifier, {"a": bound}, (clean, targets), synthetic, cost)
    return loss, bound.grad


def test_twice_the_synthetic_inputs_double_the_second_term():
    (without, none), (once, single), (twice, double) = (_gradient(*run) for run in ((1, 0.0), (1, 0.1), (2, 0.1)))
    assert once - without != 0
    assert twice - without == pytest.approx(2 * (once - without), rel=1e-5)
    torch.testing.assert_close(double - none, 2 * (single - none), rtol=1e-4, atol=1e-7)


def test_the_first_term_is_the_mean_over_rows_and_classes():
    problem = two_classes()
    inputs = torch.from_numpy(problem.inputs)
    original, bounded = (_classifier(problem).logits(inputs, u) for u in ({}, {"a": torch.full((1, 2, 1, 1), 0.7)}))
    assert _gradient(1, 0.0)[0] == pytest.approx(float((original - bounded).square().mean()), rel=1e-5)


def test_only_inputs_that_the_original_gets_right_are_learned_from():
    problem = _easy(20)
    wrong = problem.labels.copy()
    wrong[:5] = 1 - wrong[:5]
    assert _fit(replace(problem, labels=wrong)).settings["n_fitting"] == 15


def test_a_model_that_gets_nothing_right_is_refused():
    problem = _easy()
    with pytest.raises(CalibrationError, match="none of the 12 clean samples right"):
        _fit(replace(problem, labels=1 - problem.labels))


def test_synthetic_inputs_are_made_anew_at_every_hundredth_epoch():
    told = []
    _fit(replace(_easy(), progress=lambda *call: told.append(call)), epochs=201)
    assert told.count(("climbing from noise", 2, 2)) == 3
    assert told[-1] == ("mmac-published", 201, 201)


def test_the_same_seed_gives_the_same_bounds_and_another_seed_others():
    first, again, other = (_fit(two_classes(seed=seed), batch_size=16).upper["a"] for seed in (0, 0, 1))
    assert (first == again).all()
    assert (first != other).any()


def test_a_fixed_batch_gives_the_bounds_of_a_free_one():
    free = two_classes()
    expected, found = (_fit(p).upper["a"] for p in (free, with_fixed_batch(free, 7)))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def _one_huge_input(n: int) -> BoundsProblem:
    """Return a problem with an input whose squared error overflows."""
    problem = _easy(n)
    inputs = problem.inputs.copy()
    inputs[-1] *= 1e30
    return replace(problem, inputs=inputs)


def test_a_loss_that_overflows_ends_the_descent_with_the_last_good_bounds():
    bounds = _fit(_one_huge_input(20), batch_size=1)
    assert bounds.settings["stopped"].startswith("the loss was inf at step ")
    assert bounds.settings["stopped"].endswith(" of epoch 0")
    assert np.isfinite(bounds.upper["a"]).all()


def test_a_loss_that_overflows_at_once_is_refused():
    with pytest.raises(CalibrationError, match="the loss was inf at step 1 of epoch 0; check the clean samples"):
        _fit(_one_huge_input(20))


def test_a_model_of_integers_is_refused():
    problem = _easy()
    with pytest.raises(CalibrationError, match=r"takes inputs of type int64. Use .* --method sigma"):
        _fit(replace(problem, inputs=problem.inputs.astype(np.int64)))


def test_no_epoch_is_no_setting():
    with pytest.raises(ValueError, match="epochs is 0"):
        PublishedMmacSettings(epochs=0)
