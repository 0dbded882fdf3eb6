"""BAN on graphs that exporters and optimisers write: branches, other element types, channels last, no gradient."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper
from small_graphs import exported, model_of, node, optimised_by_onnxruntime, values_of

from calibrate.graph import find_sites
from calibrate.inspection.ban import BanSettings, detect_ban
from calibrate.inspection.feature_split import find_cuts, split_features
from calibrate.inspection.neuron_noise import ChannelMoments
from calibrate.inspection.noise_places import Place, find_places
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.unfused import unfused
from calibrate.sites import RowsInMemory
from guard.errors import CalibrationError

QUICK = BanSettings(seeds=2, noise_steps=3, mask_steps=5, batch_size=32, n_fitting=64)
RNG = np.random.default_rng(0)


def _look(model, shape, *, dtype=np.float32, n_classes=3, seed=0, settings=QUICK):
    return detect_ban(
        InspectionProblem(
            model=model,
            logits=model.graph.output[0].name,
            sites=find_sites(model),
            n_classes=n_classes,
            inputs=RowsInMemory(inputs=np.random.default_rng(1).normal(size=(64, *shape)).astype(dtype)),
            labels=np.arange(64) % n_classes,
            seed=seed,
            progress=lambda *_: None,
        ),
        settings=settings,
    )


def _branch(*nodes):
    output = helper.make_tensor_value_info("left", TensorProto.FLOAT, None)
    return helper.make_graph(nodes, "branch", [], [output])


def test_a_head_with_a_branch_that_captures_a_constant_is_cut_and_voted_with():
    branches = {
        "then_branch": _branch(node("Squeeze", ["pooled", "axes"], ["left"])),
        "else_branch": _branch(node("Identity", ["pooled"], ["left"])),
    }
    model = model_of(
        node("Conv", ["x", "w"], ["c"]), node("Relu", ["c"], ["a"]), node("GlobalAveragePool", ["a"], ["pooled"]),
        node("If", ["yes"], ["flat"], **branches), node("MatMul", ["flat", "v"], ["y"]), x=("N", 2, 4, 4), y=("N", 3),
        weights={"w": RNG.normal(size=(5, 2, 1, 1)), "v": RNG.normal(size=(5, 3)), "yes": np.array(True),
                 "axes": np.array([2, 3])},
    )  # fmt: skip
    found = _look(model, (2, 4, 4))
    assert (found.features, found.unneeded.shape) == ("a", (5,))
    assert find_cuts(model.graph, "y") == ("c", "a", "pooled", "flat", "y")


@pytest.mark.parametrize(("element", "dtype"), [(TensorProto.DOUBLE, np.float64), (TensorProto.FLOAT16, np.float16)])
@pytest.mark.parametrize("norm", [False, True])
def test_other_element_types_are_looked_at(element, dtype, norm):
    weights = {"w": RNG.normal(size=(3, 6)), "v": RNG.normal(size=(6, 3)), "one": np.ones(6), "zero": np.zeros(6)}
    bn = node("BatchNormalization", ["h", "one", "zero", "zero", "one"], ["b"])
    layers = [node("MatMul", ["x", "w"], ["h"]), bn if norm else node("Identity", ["h"], ["b"])]
    model = model_of(*layers, node("Relu", ["b"], ["a"]), node("MatMul", ["a", "v"], ["y"]), weights=weights,
                     dtype=element)  # fmt: skip
    assert _look(model, (3,), dtype=dtype).histograms.sum(axis=1).tolist() == [64, 64]


def test_the_channels_of_features_behind_the_last_site_are_found():
    weights = {"w": RNG.normal(size=(3, 4)), "shift": np.ones(4), "v": RNG.normal(size=(4, 3)), "axes": np.array([1])}
    model = model_of(
        node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["a"]), node("Add", ["a", "shift"], ["b"]),
        node("MatMul", ["b", "v"], ["z"]), node("ReduceMean", ["z", "axes"], ["y"], keepdims=0), x=("N", 7, 3),
        weights=weights, opset=18,
    )  # fmt: skip
    found = _look(model, (7, 3))
    assert (found.features, found.unneeded.shape) == ("b", (4,))


def test_one_position_is_no_map_wherever_its_channels_are():
    model = model_of(
        node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["a"]), node("Flatten", ["a"], ["f"]),
        node("MatMul", ["f", "v"], ["y"]), x=("N", 1, 1, 3),
        weights={"w": RNG.normal(size=(3, 4)), "v": RNG.normal(size=(4, 3))},
    )  # fmt: skip
    shapes = {"h": (1, 1, 1, 4), "a": (1, 1, 1, 4), "f": (1, 4), "y": (1, 3)}
    assert split_features(model, "y", shapes).tensor == "f"


@pytest.mark.parametrize("form", [("torchscript", 17), ("dynamo", 18)])
def test_a_network_that_pools_and_then_transposes_gives_its_channels(form):
    found = _look(exported("convnext", *form), (3, 16, 16), n_classes=10)
    assert found.unneeded.shape == (16,)


def test_a_model_without_a_gradient_is_refused():
    model = model_of(
        node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["a"]), node("Greater", ["a", "zero"], ["b"]),
        node("Cast", ["b"], ["c"], to=TensorProto.FLOAT), node("MatMul", ["c", "w"], ["y"]),
        weights={"w": np.eye(3), "zero": np.zeros(1)},
    )  # fmt: skip
    with pytest.raises(CalibrationError, match="no gradient gets through the model"):
        _look(model, (3,))


def test_copies_that_fill_a_batch_do_not_count():
    place = Place(tensor="z", kind="pre-activations", channel_axis=1)
    rows = torch.from_numpy(RNG.normal(size=(3, 4, 5))).float()
    plain, filled = ChannelMoments(place), ChannelMoments(place)
    plain.record(rows)
    filled.record(torch.cat([rows, rows[-1:].expand(5, 4, 5)]), kept=3 / 8)
    torch.testing.assert_close(filled.reference({}).shift, plain.reference({}).shift)
    torch.testing.assert_close(filled.reference({}).scale, plain.reference({}).scale)


def test_seeds_share_no_repetition():
    model = exported("vgg", "torchscript", 17)
    one, two = (replace(QUICK, seeds=n) for n in (1, 2))
    first, both, other = (
        _look(model, (3, 16, 16), n_classes=10, seed=seed, settings=settings).unneeded
        for seed, settings in ((0, one), (0, two), (1, one))
    )
    assert not np.allclose(2 * both - first, other, atol=1e-5)


@pytest.mark.parametrize("family", ["resnet", "vgg"])
def test_a_network_that_onnxruntime_has_optimised_takes_the_noise_at_the_same_places(family, tmp_path):
    plain = exported(family, "torchscript", 17)
    optimised = optimised_by_onnxruntime(plain, tmp_path)
    assert "FusedConv" in {n.op_type for n in optimised.graph.node}
    found = [_look(model, (3, 16, 16), n_classes=10) for model in (plain, optimised)]
    np.testing.assert_allclose(found[0].unneeded, found[1].unneeded, atol=1e-3)
    graphs = (plain.graph, unfused(optimised).graph)
    places = [find_places(graph, f.features) for graph, f in zip(graphs, found, strict=True)]
    assert [p.channel_axis for p in places[0]] == [p.channel_axis for p in places[1]]


@pytest.mark.parametrize(
    ("function", "parameters"), [("Relu", []), ("Clip", [-0.5, 0.5]), ("LeakyRelu", [0.3]), ("HardSigmoid", [0.3, 0.4])]
)
def test_taken_apart_a_fused_layer_gives_the_same(function, parameters):
    fused = node("FusedConv", ["x", "w"], ["y"], domain="com.microsoft", activation=function, pads=[1, 1, 1, 1])
    if parameters:
        fused.attribute.append(helper.make_attribute("activation_params", parameters))
    model = model_of(fused, x=("N", 2, 4, 4), y=None, weights={"w": RNG.normal(size=(2, 2, 3, 3))}, opset=11,
                     domains=["com.microsoft"])  # fmt: skip
    inputs = RNG.normal(size=(3, 2, 4, 4)).astype(np.float32)
    before, after = (values_of(m, "y", inputs) for m in (model, unfused(model)))
    np.testing.assert_allclose(after, before, atol=1e-6)
    assert f"y/before_{function}" in unfused(model).graph.node[0].output
