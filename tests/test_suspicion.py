"""The suspiciousness score: its terms on graphs with exact answers, and what it says where a term cannot be had."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from small_graphs import exported, model_of, node
from torch_models import example_of

from calibrate.graph import find_sites
from calibrate.inspection.class_prior import class_prior, prior_of
from calibrate.inspection.clean_channels import clean_channels, spread_over_classes
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.robust import robust_z
from calibrate.inspection.suspicion import SuspicionSettings, channel_lipschitz, score_channels
from calibrate.sites import Site
from guard.errors import CalibrationError, InputError

RNG = np.random.default_rng(5)


def _problem(model, inputs, *, n_classes=4, labels=None):
    return InspectionProblem(
        model=model,
        logits=model.graph.output[0].name,
        sites=find_sites(model),
        n_classes=n_classes,
        inputs=inputs.astype(np.float32),
        labels=np.arange(len(inputs)) % n_classes if labels is None else labels,
        seed=0,
        progress=lambda *_: None,
    )


def _two_layers(w, v):
    return model_of(
        node("MatMul", ["x", "w"], ["c"]), node("Relu", ["c"], ["a"]), node("MatMul", ["a", "v"], ["y"]),
        x=("N", w.shape[0]), y=("N", v.shape[1]), weights={"w": w, "v": v},
    )  # fmt: skip


def _only(term):
    weights = {"weight": 0, "outgoing": 1, "activation": 2, "relation": 3}
    return SuspicionSettings(weights=tuple(float(place == weights[term]) for place in range(4)))


def _channels(values):
    """Return what is found of a Relu's channels; values (N, K)."""
    model = model_of(node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"]), x=("N", "K"), y=("N", "K"))
    site = Site(tensor="a", function="Relu", shape=(None, None), channel_axis=1)
    return clean_channels(model, [site], values.astype(np.float32), progress=lambda *_: None)["a"]


def test_the_lipschitz_bound_of_a_one_by_one_convolution_is_its_norm():
    weights = RNG.normal(size=(6, 5, 1))
    np.testing.assert_allclose(channel_lipschitz([weights]), np.linalg.norm(weights[:, :, 0], axis=1))


@pytest.mark.parametrize("shape", [(3, 8, 9), (3, 20, 9), (3, 1, 9)])
def test_the_lipschitz_bound_is_the_largest_singular_value_and_adds_up_over_branches(shape):
    weights = RNG.normal(size=shape)
    expected = np.linalg.svd(weights, compute_uv=False)[:, 0]
    np.testing.assert_allclose(channel_lipschitz([weights]), expected)
    np.testing.assert_allclose(channel_lipschitz([weights, -weights]), 2 * expected)


@given(st.lists(st.integers(-1000, 1000), min_size=1, max_size=30), st.integers(1, 50), st.integers(-99, 99))
def test_robust_z_is_centred_and_knows_neither_shift_nor_scale(numbers, scale, shift):
    values = np.array(numbers, dtype=np.float64)
    z = robust_z(values)
    assert np.median(z) == 0
    np.testing.assert_allclose(robust_z(scale * values + shift), z, rtol=1e-6, atol=1e-6)


def test_values_that_are_missing_are_as_ordinary_as_the_median():
    np.testing.assert_array_equal(robust_z(np.array([np.nan, 1, 2, 3]))[[0, 2]], [0, 0])
    np.testing.assert_array_equal(robust_z(np.full(3, np.nan)), 0)


def test_unlikeness_is_zero_for_a_copy_and_near_one_for_an_independent_channel():
    same = RNG.uniform(1, 2, size=(4000, 1))
    assert _channels(np.hstack([same, 3 * same, 5 - same])).unlikeness == pytest.approx(0, abs=1e-5)
    assert _channels(RNG.uniform(1, 2, size=(4000, 3))).unlikeness == pytest.approx(1, abs=0.05)


def test_unlikeness_is_that_of_numpy_over_several_batches():
    values = RNG.normal(size=(300, 5)).cumsum(axis=1)
    correlation = np.abs(np.corrcoef(np.maximum(values, 0).T.astype(np.float32)))
    expected = 1 - (correlation.sum(axis=1) - 1) / 4
    np.testing.assert_allclose(_channels(values).unlikeness, expected, atol=1e-6)


def test_a_channel_that_never_varies_is_known_as_such():
    values = RNG.uniform(1, 2, size=(50, 3))
    values[:, 1] = 7
    found = _channels(values)
    np.testing.assert_array_equal(found.varies, [True, False, True])
    assert np.isnan(found.unlikeness[1])


@pytest.mark.parametrize("term", ["weight", "outgoing", "activation", "relation"])
def test_each_term_alone_names_the_channel_that_was_made_to_stand_out(term):
    w, v = np.eye(6) + 0.01 * RNG.normal(size=(6, 6)), RNG.uniform(0.9, 1.1, size=(6, 4))
    inputs = RNG.uniform(1, 2, size=(40, 6))
    if term == "weight":
        w[:, 2] *= 5
    if term == "outgoing":
        v[2] *= 5
    if term == "activation":
        inputs[:, 2] *= 0.01
    if term == "relation":
        inputs = 0.1 * inputs + RNG.uniform(1, 2, size=(40, 1))
        inputs[:, 2] = RNG.uniform(1, 2, size=40)
    scores = score_channels(_problem(_two_layers(w, v), inputs), settings=_only(term)).scores["a"]
    assert scores.shape == (6,)
    assert scores.argmax() == 2


def test_the_score_is_the_plain_sum_of_the_four_terms():
    inputs = RNG.uniform(1, 2, size=(40, 6))
    found = score_channels(_problem(_two_layers(RNG.normal(size=(6, 6)), RNG.normal(size=(6, 4))), inputs))
    assert sorted(found.terms["a"]) == ["activation", "outgoing", "relation", "weight"]
    np.testing.assert_allclose(found.scores["a"], sum(found.terms["a"].values()))


def test_terms_that_cannot_be_had_are_left_out_and_named():
    model = model_of(node("Relu", ["x"], ["a"]), node("Neg", ["a"], ["y"]))
    found = score_channels(_problem(model, np.ones((4, 3)), n_classes=3))
    assert set(found.left_out["a"]) == {"weight", "outgoing", "relation"}
    np.testing.assert_array_equal(found.scores["a"], 0)
    assert found.class_prior is None


def test_a_graph_of_every_family_is_scored_and_the_summary_is_json():
    for family in ("mlp", "mobilenet", "resnet", "vgg"):
        found = score_channels(_problem(exported(family, "dynamo", 18), example_of(12).numpy(), n_classes=10))
        assert all(not reasons for reasons in found.left_out.values())
        summary = json.loads(json.dumps(found.summary()))
        assert summary["n_samples"] == 12
        best = summary["top_channels"][0]
        assert found.scores[best["site"]][best["channel"]] == pytest.approx(best["score"], abs=1e-4)


def test_samples_spread_over_the_classes_and_no_more_are_used_than_asked_for():
    labels = np.array([0, 0, 0, 0, 1, 0, 2, 1])
    inputs = np.arange(8, dtype=np.float32)[:, None]
    np.testing.assert_array_equal(spread_over_classes(inputs, labels, 3)[:][:, 0], [0, 4, 6])
    np.testing.assert_array_equal(spread_over_classes(inputs, labels, 99)[:][:, 0], np.arange(8))
    problem = _problem(_two_layers(np.eye(3), np.eye(3)), RNG.normal(size=(50, 3)))
    assert score_channels(problem, settings=SuspicionSettings(n_samples=10)).n_samples == 10


def test_what_cannot_be_scored_is_refused():
    problem = _problem(_two_layers(np.eye(3), np.eye(3)), RNG.normal(size=(9, 3)))
    with pytest.raises(InputError, match="no clean inputs"):
        score_channels(replace(problem, inputs=problem.inputs[:0]))
    overflowing = _problem(_two_layers(np.full((3, 3), 1e38), np.eye(3)), np.full((3, 3), 10.0))
    with pytest.raises(CalibrationError, match="'a' is NaN or infinite"):
        score_channels(overflowing)


def test_a_class_that_much_weight_raises_is_suspected_and_an_even_head_is_not():
    head = RNG.normal(size=(10, 64))
    assert prior_of(head).suspected_class is None
    head[7, :20] += 2
    found = prior_of(head)
    assert (found.suspected_class, found.p_value < 0.05, found.z.argmax()) == (7, True, 7)


def test_where_most_values_are_the_same_the_mean_deviation_stands_in():
    np.testing.assert_allclose(robust_z(np.array([0.0, 0, 0, 0, 5])), [0, 0, 0, 0, 5 / 1.2533])
    np.testing.assert_array_equal(robust_z(np.array([0.3, 0.1 + 0.2, 0.3])), 0)


@pytest.mark.parametrize("scale", [1e-9, 1.0, 1e9])
def test_a_prior_does_not_depend_on_the_scale_of_the_weights(scale):
    head = np.random.default_rng(3).normal(size=(3, 8))
    assert prior_of(scale * head).p_value == prior_of(head).p_value


def test_two_classes_have_no_prior():
    model = _two_layers(np.eye(3), RNG.normal(size=(3, 2)))
    assert class_prior(model, "y", n_classes=2) is None


def test_the_prior_of_normal_classes_errs_about_as_often_as_it_says():
    rng = np.random.default_rng(1)
    p_values = [prior_of(rng.normal(size=(10, 200))).p_value for _ in range(100)]
    assert np.mean(np.array(p_values) <= 0.05) <= 0.13
