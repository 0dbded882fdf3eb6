"""What graphs show beside their answers, held against numpy on the values of their own tensors."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from small_graphs import exported, model_of, node, values_of

from calibrate.edit import check_edited, insert_bounds
from calibrate.graph import find_sites
from calibrate.names import all_names
from calibrate.observers import MeanStd, Standards, show_excess, show_profile_and_head
from calibrate.sites import ActivationBounds, Site
from guard.model import OrtModel

RNG = np.random.default_rng(0)
FLOATS = {"float16": TensorProto.FLOAT16, "float32": TensorProto.FLOAT, "float64": TensorProto.DOUBLE}
TOLERANCE = {"float16": 3e-2, "float32": 1e-5, "float64": 1e-5}
KERNEL, DENSE = RNG.normal(size=(4, 2, 3, 3)) / 3, RNG.normal(size=(4, 3))


def conv_net(dtype="float32", **how):
    """Return x (N, 2, 5, 5) -> conv -> relu -> mean -> gemm -> relu2 -> y (N, 3)."""
    mean = node("GlobalAveragePool", ["relu"], ["pooled"])
    return model_of(
        node("Conv", ["x", "k"], ["conv"]), node("Relu", ["conv"], ["relu"]), mean,
        node("Flatten", ["pooled"], ["flat"]), node("MatMul", ["flat", "w"], ["dense"]),
        node("Relu", ["dense"], ["relu2"]), node("Neg", ["relu2"], ["y"]),
        x=("N", 2, 5, 5), weights={"k": KERNEL, "w": DENSE}, dtype=FLOATS[dtype], **how,
    )  # fmt: skip


def pixel_net(dtype="float32", **how):
    """Return x (N, 2, 5, 5) -> scaled -> relu -> flat -> y (N, 3), which onnxruntime runs in double precision too."""
    return model_of(
        node("Mul", ["x", "scale"], ["scaled"]), node("Relu", ["scaled"], ["relu"]),
        node("Flatten", ["relu"], ["flat"]), node("MatMul", ["flat", "w"], ["y"]), x=("N", 2, 5, 5),
        weights={"scale": np.array([1.0, -2.0]).reshape(1, 2, 1, 1), "w": np.tile(DENSE, (13, 1))[:50] / 3},
        dtype=FLOATS[dtype], **how,
    )  # fmt: skip


def token_net(**how):
    """Return x (N, 6, 4) -> relu (N, 6, 4), channels last -> mean over tokens -> y (N, 3)."""
    reduce = node("ReduceMean", ["relu"], ["mean"], axes=[1], keepdims=0)
    if how.get("opset", 17) >= 18:
        reduce = node("ReduceMean", ["relu", "axes"], ["mean"], keepdims=0)
    axes = {"axes": np.array([1])} if how.get("opset", 17) >= 18 else {}
    return model_of(
        node("MatMul", ["x", "m"], ["h"]), node("Relu", ["h"], ["relu"]), reduce, node("MatMul", ["mean", "w"], ["y"]),
        x=("N", 6, 4), weights={"m": np.eye(4), "w": DENSE, **axes}, **how,
    )  # fmt: skip


def standards_of(sites):
    rng = np.random.default_rng(1)
    return {
        site.tensor: Standards(
            **{
                of: MeanStd(mean=rng.normal(size=k), std=rng.uniform(0.5, 2, size=k))
                for of in ("activation", "level", "reach")
            }
        )
        for site in sites
        for k in [site.shape[site.channel_axis]]
    }


def shaped(values, site):
    return values.reshape([-1 if axis == site.channel_axis else 1 for axis in range(len(site.shape))])


def observed(model, sites, upper=0.3, logits="y"):
    """Return the observed original and the names of its profile and its head."""
    last = np.full([1] * len(sites[-1].shape), upper, dtype=sites[-1].dtype)
    shown, names = show_profile_and_head(model, logits, sites, standards_of(sites), {sites[-1].tensor: last})
    return check_edited(shown), names["profile"], names["head"]


def numbers_of(model, site, inputs):
    """Return the four numbers (N,) of a site as guard.detector states them."""
    values, usual = values_of(model, site.tensor, inputs).astype(np.float64), standards_of_one(model, site)
    places = tuple(a for a in range(1, values.ndim) if a != site.channel_axis)
    everywhere = (values - shaped(usual.activation.mean, site)) / shaped(usual.activation.std, site)
    level = (values.mean(axis=places) - usual.level.mean) / usual.level.std
    reach = (values.max(axis=places) - usual.reach.mean) / usual.reach.std
    return (
        np.log1p(np.maximum(everywhere.reshape(len(values), -1).max(axis=1), 0)),
        np.log(0.1 + np.sqrt(np.square(level).mean(axis=1))),
        np.log1p(np.maximum(level.max(axis=1), 0)),
        np.log(0.1 + np.sqrt(np.square(reach).mean(axis=1))),
    )


def standards_of_one(model, site):
    return standards_of(find_sites(model))[site.tensor]


def inputs_for(model, dtype="float32", n=5):
    (x,) = model.graph.input[:1]
    shape = [d.dim_value for d in x.type.tensor_type.shape.dim][1:]
    return np.random.default_rng(2).normal(size=(n, *shape)).astype(dtype)


def check_shown(model, dtype="float32", upper=0.3):
    """Check profile, head and answers against the original's own tensors."""
    inputs, sites = inputs_for(model, dtype), find_sites(model)
    shown, *names = observed(model, sites, upper)
    answers, profile, head = OrtModel(shown.SerializeToString(), label="observed").run(inputs, ["y", *names])
    by_site = [numbers_of(model, site, inputs) for site in sites]
    expected = np.stack([numbers[k] for k in range(4) for numbers in by_site], axis=1)
    np.testing.assert_allclose(profile, expected, rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])
    assert (profile.dtype, head.dtype) == (np.float32, np.dtype(dtype))
    np.testing.assert_allclose(answers, values_of(model, "y", inputs), rtol=TOLERANCE[dtype], atol=1e-6)
    bounds = {sites[-1].tensor: np.full([1] * len(sites[-1].shape), upper)}
    bounded = insert_bounds(model, ActivationBounds(method="by-hand", settings={}, upper=bounds), sites)
    np.testing.assert_allclose(head, values_of(bounded, "y", inputs), rtol=TOLERANCE[dtype], atol=1e-6)
    assert np.abs(head - answers).max() > 0.1


@pytest.mark.parametrize("build", [conv_net, token_net])
@pytest.mark.parametrize("opset", [11, 13, 17, 18, 20])
def test_profile_and_head_are_what_numpy_makes_of_the_activations(build, opset):
    check_shown(build(opset=opset))


@pytest.mark.parametrize(("build", "dtype"), [(conv_net, "float16"), (pixel_net, "float16"), (pixel_net, "float64")])
@pytest.mark.parametrize("opset", [11, 13, 18])
def test_models_of_other_precision_show_the_same(build, dtype, opset):
    check_shown(build(dtype, opset=opset), dtype)


def test_a_model_whose_weights_are_all_inputs_gets_no_further_input():
    model = conv_net(opset=11, ir_version=3)
    for tensor in model.graph.initializer:
        model.graph.input.append(helper.make_tensor_value_info(tensor.name, TensorProto.FLOAT, tensor.dims))
    check_shown(model)
    shown, *_ = observed(model, find_sites(model))
    assert [i.name for i in shown.graph.input] == ["x", "k", "w"]
    assert len(shown.graph.initializer) == 2


def test_float16_channels_that_hardly_vary_still_have_a_finite_profile():
    model = conv_net("float16")
    sites = find_sites(model)
    small = {k: MeanStd(mean=np.zeros(k), std=np.full(k, 1e-9)) for k in (3, 4)}
    tiny = {
        site.tensor: Standards(activation=small[k], level=small[k], reach=small[k])
        for site, k in zip(sites, (4, 3), strict=True)
    }
    last = {"relu2": np.full((1, 1), 1.0, np.float16)}
    shown, names = show_profile_and_head(model, "y", sites, tiny, last)
    found = values_of(check_edited(shown), names["profile"], inputs_for(model, "float16"))
    assert np.isfinite(found).all()
    assert (found.max(axis=0) > np.log(1e6)).all()


def test_names_that_are_taken_are_left_to_those_who_have_them():
    model = conv_net()
    for k, name in enumerate(["profile", "head/bounded", "0/scaled", "head/y"]):
        model.graph.node.append(node("Neg", ["x"], [f"trigger_guard/{name}"], name=f"trigger_guard/{k}/peak"))
    sites = find_sites(model)
    shown, profile, head = observed(model, sites)
    assert (profile, head) == ("trigger_guard/profile_2", "trigger_guard/head/y_2")
    outputs = [name for n in shown.graph.node for name in n.output]
    assert len(outputs) == len(set(outputs))
    check_shown(model)


def branch(name, *nodes):
    output = helper.make_tensor_value_info(nodes[-1].output[0], TensorProto.FLOAT, None)
    return helper.make_graph(nodes, name, [], [output])


def test_a_head_behind_an_if_whose_branches_read_the_site_is_run_again_with_its_bound():
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("ReduceSum", ["x"], ["sum"], keepdims=0),
        node("Greater", ["sum", "zero"], ["is_positive"]),
        node("If", ["is_positive"], ["h"], then_branch=branch("then", node("Neg", ["relu"], ["t"])),
             else_branch=branch("else", node("Add", ["relu", "one"], ["s"]), node("Identity", ["s"], ["e"]))),
        node("Mul", ["h", "two"], ["y"]), weights={"zero": 0.0, "one": 1.0, "two": 2.0},
    )  # fmt: skip
    (site,) = [s for s in find_sites(model) if s.tensor == "relu"]
    shown, *_, head = observed(model, [site], upper=1.0)
    positive, negative = np.array([[3, 1, -1]], np.float32), np.array([[-9, 2, 1]], np.float32)
    assert values_of(shown, head, positive).tolist() == [[-2, -2, 0]]
    assert values_of(shown, head, negative).tolist() == [[2, 4, 4]]
    assert values_of(shown, "y", positive).tolist() == [[-6, -2, 0]]


def test_a_branch_that_gives_the_site_itself_gives_its_bound_instead():
    model = model_of(
        node("Relu", ["x"], ["relu"]), node("Constant", [], ["yes"], value=helper.make_tensor("b", 9, [], [True])),
        node("If", ["yes"], ["y"], then_branch=helper.make_graph(
            [], "then", [], [helper.make_tensor_value_info("relu", 1, None)]),
            else_branch=branch("else", node("Neg", ["relu"], ["e"]))),
    )  # fmt: skip
    site = Site(tensor="relu", function="Relu", shape=(None, 3), channel_axis=1)
    last = {"relu": np.ones((1, 1), np.float32)}
    shown, names = show_profile_and_head(model, "y", [site], standards_of([site]), last)
    copy = next(n for n in shown.graph.node if names["head"] in n.output)
    then = next(a.g for a in copy.attribute if a.name == "then_branch")
    assert [o.name for o in then.output] == ["trigger_guard/head/bounded"]


def test_logits_that_are_the_last_site_themselves_are_bounded():
    model = model_of(node("Relu", ["x"], ["relu"]), node("Softmax", ["relu"], ["y"], axis=1))
    model.graph.output.append(helper.make_tensor_value_info("relu", TensorProto.FLOAT, ["N", 3]))
    site = Site(tensor="relu", function="Relu", shape=(None, 3), channel_axis=1)
    shown, *_, head = observed(model, [site], upper=2.0, logits="relu")
    assert values_of(shown, head, np.array([[-1, 1, 9]], np.float32)).tolist() == [[0, 1, 2]]


def test_only_what_lies_behind_the_last_site_is_copied():
    model = exported("resnet", "torchscript", 17)
    sites = find_sites(model)
    logits = model.graph.output[0].name
    shown, *_ = observed(model, sites, logits=logits)
    kinds = [n.op_type for n in shown.graph.node]
    assert kinds.count("Conv") == [n.op_type for n in model.graph.node].count("Conv")
    assert kinds.count("Gemm") == 2


def excess_of(model, upper, lower=None):
    """Return the bounded model that shows excess, and its outputs capped and capped_at by site."""
    sites = [site for site in find_sites(model) if site.tensor in upper]
    bounds = ActivationBounds(method="by-hand", settings={}, upper=upper, lower=lower or {})
    shown, capped, capped_at = show_excess(
        insert_bounds(model, bounds, sites), sites, bounds, standards_of(find_sites(model))
    )
    return check_edited(shown), capped, capped_at


@pytest.mark.parametrize("two_sided", [False, True])
@pytest.mark.parametrize(
    ("build", "dtype", "opset"),
    [
        (conv_net, "float32", 11),
        (conv_net, "float32", 18),
        (conv_net, "float16", 13),
        (pixel_net, "float64", 11),
        (pixel_net, "float64", 18),
    ],
)
def test_excess_is_what_numpy_makes_of_the_unbounded_activations(build, dtype, opset, two_sided):
    model = build(dtype, opset=opset)
    inputs, site = inputs_for(model, dtype), find_sites(model)[0]
    upper = shaped(np.linspace(0.1, 0.4, site.shape[1]), site)
    lower = {"relu": np.full_like(upper, 0.05)} if two_sided else {}
    shown, capped, capped_at = excess_of(model, {"relu": upper}, lower)
    past = np.maximum(values_of(model, "relu", inputs).astype(np.float64) - upper, 0)
    past /= shaped(standards_of_one(model, site).activation.std, site)
    close = {"rtol": TOLERANCE[dtype], "atol": TOLERANCE[dtype]}
    np.testing.assert_allclose(values_of(shown, capped["relu"], inputs), past.max((2, 3)), **close)
    np.testing.assert_allclose(values_of(shown, capped_at["relu"], inputs), past.max(1), **close)
    assert past.max() > 1
    assert capped.keys() == capped_at.keys() == {"relu"}


def test_a_site_without_places_shows_its_channels_alone():
    upper = {"relu": np.full((1, 4, 1, 1), 0.1), "relu2": np.array(0.0)}
    shown, capped, capped_at = excess_of(conv_net(), upper)
    assert (capped.keys(), capped_at.keys()) == ({"relu", "relu2"}, {"relu"})
    inputs, (_, dense) = inputs_for(conv_net()), find_sites(conv_net())
    unbounded = values_of(shown, "relu2/unbounded", inputs)
    expected = unbounded / standards_of_one(conv_net(), dense).activation.std
    np.testing.assert_allclose(values_of(shown, capped["relu2"], inputs), expected, rtol=1e-5)


def test_excess_per_token_has_channels_and_no_places():
    shown, capped, capped_at = excess_of(token_net(), {"relu": np.array(0.5)})
    assert not capped_at
    inputs, (site,) = inputs_for(token_net()), find_sites(token_net())
    past = np.maximum(inputs - 0.5, 0).max(axis=1) / standards_of_one(token_net(), site).activation.std
    np.testing.assert_allclose(values_of(shown, capped["relu"], inputs), past, rtol=1e-5)


def test_a_bounded_model_answers_as_it_did():
    model = conv_net()
    upper = {"relu": np.full((1, 4, 1, 1), 0.2), "relu2": np.array(0.25)}
    shown, _, _ = excess_of(model, upper)
    bounded = insert_bounds(model, ActivationBounds(method="by-hand", settings={}, upper=upper), find_sites(model))
    inputs = inputs_for(model)
    np.testing.assert_allclose(values_of(shown, "y", inputs), values_of(bounded, "y", inputs), rtol=1e-5, atol=1e-6)


def test_the_original_is_left_as_it_is():
    model = conv_net()
    before, names = model.SerializeToString(deterministic=True), set(all_names(model.graph))
    shown, *_ = observed(model, find_sites(model))
    assert model.SerializeToString(deterministic=True) == before
    assert names < set(all_names(shown.graph))
    assert isinstance(shown, onnx.ModelProto)
