"""The weights before and behind a site are found through what keeps channels apart, and only through that."""

import numpy as np
import pytest
from onnx import numpy_helper
from small_graphs import exported, model_of, node
from torch_models import build, example_of, export

from calibrate.graph import find_sites
from calibrate.inspection.channel_weights import find_channel_weights, find_head
from calibrate.inspection.suspicion import clp_scores

RNG = np.random.default_rng(0)
BN = {"gamma": [2.0, -3.0], "beta": [0.0, 0.0], "mean": [0.0, 0.0], "var": [4.0, 1.0]}


def _weights(*names_and_shapes):
    return {name: RNG.normal(size=shape).astype(np.float32) for name, shape in names_and_shapes}


def _found(model, **n_channels):
    return find_channel_weights(model, find_sites(model), n_channels)


def test_batch_norm_scales_what_the_convolution_makes():
    weights = {**_weights(("w", (2, 3, 1, 1)), ("v", (3, 2, 1, 1))), **BN}
    model = model_of(
        node("Conv", ["x", "w"], ["c"]), node("BatchNormalization", ["c", *BN], ["b"], epsilon=0.0),
        node("Relu", ["b"], ["a"]), node("Conv", ["a", "v"], ["y"]),
        x=("N", 3, 4, 4), y=("N", 3, 4, 4), weights=weights,
    )  # fmt: skip
    found = _found(model, a=2)["a"]
    (producing,), (consuming,) = found.producing, found.consuming
    np.testing.assert_allclose(producing[:, :, 0], weights["w"][:, :, 0, 0] * [[1], [-3]], rtol=1e-6)
    np.testing.assert_array_equal(consuming[:, :, 0], weights["v"][:, :, 0, 0])
    bound = clp_scores(model, find_sites(model), {"a": 2})["a"]
    np.testing.assert_allclose(bound, np.linalg.norm(weights["w"][:, :, 0, 0], axis=1) * [1, 3], rtol=1e-6)


def test_a_residual_sum_ends_at_the_next_site_and_has_a_producer_per_branch():
    weights = _weights(("w", (2, 2, 1, 1)), ("v", (2, 2, 1, 1)), ("u", (2, 2, 1, 1)), ("head", (2, 4)))
    model = model_of(
        node("Relu", ["x"], ["a"]), node("Conv", ["a", "w"], ["c"]), node("Conv", ["a", "v"], ["s"]),
        node("Add", ["c", "s"], ["sum"]), node("Relu", ["sum"], ["b"]), node("Conv", ["b", "u"], ["d"]),
        node("Add", ["d", "b"], ["last"]), node("Relu", ["last"], ["e"]), node("GlobalAveragePool", ["e"], ["p"]),
        node("Flatten", ["p"], ["f"]), node("MatMul", ["f", "head"], ["y"]),
        x=("N", 2, 4, 4), y=("N", 4), weights=weights,
    )  # fmt: skip
    found = _found(model, a=2, b=2, e=2)
    assert [len(found[t].producing) for t in "abe"] == [0, 2, 1]
    assert [len(found[t].consuming) for t in "abe"] == [2, 1, 1]
    np.testing.assert_array_equal(found["e"].consuming[0][:, :, 0], weights["head"].T)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_head_behind_a_flatten_is_read_channel_by_channel(transposed):
    head = _weights(("head", (8, 5)))["head"]
    gemm = node("Gemm", ["f", "head", "bias"], ["y"], transB=int(transposed))
    model = model_of(
        node("Relu", ["x"], ["a"]), node("Flatten", ["a"], ["f"]), gemm, x=("N", 2, 2, 2), y=("N", 5),
        weights={"head": head.T if transposed else head, "bias": np.zeros(5)},
    )  # fmt: skip
    np.testing.assert_array_equal(_found(model, a=2)["a"].consuming[0], head.T.reshape(5, 2, 4))
    np.testing.assert_array_equal(find_head(model, "y", n_classes=5), head.T)


def test_channels_last_are_read_as_the_last_axis():
    weights = _weights(("w", (3, 4)), ("head", (4, 5)))
    model = model_of(
        node("MatMul", ["x", "w"], ["c"]), node("Relu", ["c"], ["a"]), node("MatMul", ["a", "head"], ["y"]),
        x=("N", 7, 3), y=("N", 7, 5), weights=weights,
    )  # fmt: skip
    found = _found(model, a=4)["a"]
    np.testing.assert_array_equal(found.producing[0][:, :, 0], weights["w"].T)
    np.testing.assert_array_equal(found.consuming[0][:, :, 0], weights["head"].T)


def test_a_depthwise_convolution_reads_each_channel_with_its_own_weights():
    weights = _weights(("w", (4, 1, 3, 3)))
    model = model_of(
        node("Relu", ["x"], ["a"]), node("Conv", ["a", "w"], ["y"], group=4), x=("N", 4, 3, 3), y=("N", 4, 1, 1),
        weights=weights,
    )  # fmt: skip
    np.testing.assert_array_equal(_found(model, a=4)["a"].consuming[0], weights["w"].reshape(1, 4, 9))


def test_what_mixes_channels_is_not_looked_through():
    model = model_of(
        node("Conv", ["x", "w"], ["c"]), node("Concat", ["c", "x"], ["cat"], axis=1), node("Relu", ["cat"], ["a"]),
        node("Softmax", ["a"], ["y"]), x=("N", 2, 4, 4), y=("N", 4, 4, 4), weights=_weights(("w", (2, 2, 1, 1))),
    )  # fmt: skip
    found = _found(model, a=4)["a"]
    assert (found.producing, found.consuming) == ((), ())
    assert find_head(model, "y", n_classes=4) is None


@pytest.mark.parametrize("family", ["mlp", "mobilenet", "resnet", "vgg"])
@pytest.mark.parametrize(("exporter", "opset"), [("torchscript", 17), ("dynamo", 18)])
def test_every_site_of_the_known_families_has_weights_on_both_sides(family, exporter, opset):
    model = exported(family, exporter, opset)
    sites = find_sites(model)
    found = find_channel_weights(model, sites, {s.tensor: s.shape[s.channel_axis] for s in sites})
    assert all(w.producing and w.consuming for w in found.values())
    assert find_head(model, "logits", n_classes=10).shape[0] == 10


def test_folding_batch_norm_leaves_the_bounds_as_they_are():
    bounds = []
    for fold in (True, False):
        model = export(build("vgg"), example_of(), exporter="torchscript", opset=17, fold=fold)
        sites = find_sites(model)
        n_channels = {s.tensor: s.shape[s.channel_axis] for s in sites}
        assert any(n.op_type == "BatchNormalization" for n in model.graph.node) != fold
        bounds.append(list(clp_scores(model, sites, n_channels).values()))
    for folded, plain in zip(*bounds, strict=True):
        np.testing.assert_allclose(folded, plain, rtol=1e-4)


def test_weights_behind_a_transpose_node_are_found():
    head = RNG.normal(size=(5, 3)).astype(np.float32)
    model = model_of(
        node("Relu", ["x"], ["a"]), node("Transpose", ["head"], ["turned"]), node("MatMul", ["a", "turned"], ["y"]),
        y=("N", 5), weights={"head": head},
    )  # fmt: skip
    np.testing.assert_array_equal(_found(model, a=3)["a"].consuming[0][:, :, 0], head)
    assert numpy_helper.to_array(model.graph.initializer[0]).shape == (5, 3)
