"""Bounds from a handful of inputs: suspicious channels get least room, and no channel is switched off by chance."""

import numpy as np
import pytest
from onnx import TensorProto
from small_graphs import exported, model_of, node, values_of
from torch_models import example_of
from unit_problems import problem_of

from calibrate.bounds.few_shot import FewShotSettings, fit_few_shot, kappas
from calibrate.edit import insert_bounds
from calibrate.forward import predict
from calibrate.graph import find_sites
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.suspicion import score_channels
from calibrate.sites import BoundsProblem
from guard.errors import CalibrationError

PLAIN = FewShotSettings()


def _problem(model, inputs, *, allowed=0.9):
    logits = model.graph.output[0].name
    return BoundsProblem(
        model=model, logits=logits, sites=find_sites(model), n_classes=10, inputs=inputs,
        labels=predict(model, logits, inputs), max_accuracy_drop=allowed, seed=0, progress=lambda *_: None,
    )  # fmt: skip


def test_room_falls_with_rank_from_near_four_to_one_half():
    found = kappas(np.array([7.0, 1.0, 3.0, 2.0]), PLAIN)
    np.testing.assert_allclose(found, [0.5, 3.125, 1.375, 2.25])


def test_channels_of_one_score_share_the_middle_of_their_ranks():
    np.testing.assert_allclose(kappas(np.zeros(3), PLAIN), 4 - 3.5 * 2 / 3)


def test_the_most_suspicious_channels_are_really_the_strictest():
    model, inputs = exported("resnet", "dynamo", 18), example_of(10).numpy()
    problem = _problem(model, inputs)
    upper = fit_few_shot(problem).upper
    found = score_channels(
        InspectionProblem(model=model, logits="logits", sites=problem.sites, n_classes=10, inputs=inputs,
                          labels=problem.labels, seed=0, progress=lambda *_: None)
    )  # fmt: skip
    for site in problem.sites:
        top = found.scores[site.tensor].argmax()
        maxima = values_of(model, site.tensor, inputs).max(axis=(2, 3))
        bound, middle, largest = upper[site.tensor][0, top, 0, 0], np.median(maxima[:, top]), maxima[:, top].max()
        assert middle <= bound <= largest * (1 + 1e-6)


def _of_maxima(maxima):
    """Let one channel per column take these values at one of four positions."""
    inputs = np.zeros((*maxima.shape, 2, 2), dtype=np.float32)
    inputs[..., 0, 1] = maxima
    return problem_of(inputs, np.zeros(len(maxima)), np.eye(maxima.shape[1]), max_accuracy_drop=0.99)


def test_a_bound_is_the_median_of_the_maxima_and_room_in_scales():
    settings = FewShotSettings(kappa_max=2.0, kappa_min=2.0, strict_share=0.0, slacks=(1.0,))
    maxima = np.array([[1, 10], [2, 20], [3, 30], [4, 40], [5, 50]], dtype=np.float64)
    upper = fit_few_shot(_of_maxima(maxima), settings=settings).upper["a"].reshape(-1)
    np.testing.assert_allclose(upper[1], 30 + 2 * 1.4826 * 10, rtol=1e-6)


def test_a_channel_that_a_few_inputs_never_light_keeps_some_room():
    maxima = np.tile(np.array([[1.0], [2.0], [3.0]]), (1, 5))
    maxima[:, 2] = 0
    upper = fit_few_shot(_of_maxima(maxima)).upper["a"].reshape(-1)
    assert (upper > 0).all()
    assert upper[2] < upper[[0, 1, 3, 4]].min()


@pytest.mark.parametrize("n", [2, 3])
@pytest.mark.parametrize("family", ["mlp", "mobilenet", "resnet", "vgg"])
def test_two_inputs_are_enough(family, n):
    problem = _problem(exported(family, "torchscript", 17), example_of(n).numpy())
    bounds = fit_few_shot(problem)
    assert bounds.settings["n_samples"] == n
    for site in problem.sites:
        upper = bounds.upper[site.tensor]
        assert upper.size == site.shape[site.channel_axis]
        assert np.isfinite(upper).all()
        assert (upper >= 0).all()
    predict(insert_bounds(problem.model, bounds, problem.sites), problem.logits, problem.inputs)


def test_a_site_that_goes_negative_is_bounded_from_below_too():
    model = model_of(node("Tanh", ["x"], ["tanh"]), node("Neg", ["tanh"], ["y"]))
    inputs = np.random.default_rng(0).normal(size=(9, 3)).astype(np.float32)
    same_room = FewShotSettings(kappa_max=2.0, kappa_min=2.0, strict_share=0.0, slacks=(1.0,))
    up, down = (fit_few_shot(_problem(model, x), settings=same_room) for x in (inputs, -inputs))
    assert (up.lower["tanh"] < up.upper["tanh"]).all()
    np.testing.assert_allclose(up.lower["tanh"], -down.upper["tanh"], rtol=1e-5)


def test_a_site_that_stays_positive_has_no_lower_bound():
    assert fit_few_shot(_problem(exported("vgg", "dynamo", 18), example_of(5).numpy())).lower == {}


def test_bounds_are_loosened_until_the_samples_keep_their_class():
    maxima = np.array([[0.0, 3], [0, 3], [0, 3], [0, 3], [10, 3]])
    labels = maxima.argmax(axis=1)
    tight = FewShotSettings(kappa_max=0.1, kappa_min=0.1, strict_share=0.0, slacks=(1.0, 1000.0))
    inputs = np.repeat(maxima[:, :, None], 4, axis=2)
    found = fit_few_shot(problem_of(inputs, labels, np.eye(2), max_accuracy_drop=0.0), settings=tight)
    assert found.settings["slack"] == 1000.0
    with pytest.raises(CalibrationError, match=r"leave an accuracy of 0.800 on 5 samples, below the 1.000 allowed"):
        fit_few_shot(
            problem_of(inputs, labels, np.eye(2), max_accuracy_drop=0.0),
            settings=FewShotSettings(kappa_max=0.1, kappa_min=0.1, strict_share=0.0, slacks=(1.0,)),
        )


def test_half_precision_is_bounded():
    model = model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), dtype=TensorProto.FLOAT16)
    inputs = np.random.default_rng(0).normal(size=(5, 3)).astype(np.float16)
    assert np.isfinite(fit_few_shot(_problem(model, inputs)).upper["relu"]).all()


def test_two_fits_give_the_same_bounds():
    problem = _problem(exported("resnet", "torchscript", 17), example_of(8).numpy())
    first, second = fit_few_shot(problem), fit_few_shot(problem)
    assert {t: u.tobytes() for t, u in first.upper.items()} == {t: u.tobytes() for t, u in second.upper.items()}
