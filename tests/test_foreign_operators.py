"""Operators of other domains, against onnxruntime, and what only a branch or another domain can do wrong."""

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper
from small_graphs import exported, model_of, node, optimised_by_onnxruntime, values_of

from calibrate.differentiable import DifferentiableModel
from calibrate.graph import find_sites
from calibrate.operators import DOMAINS
from guard.errors import CalibrationError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(5, 4)).astype(np.float32)
IMAGES = RNG.normal(size=(3, 2, 6, 5)).astype(np.float32)
W, B = RNG.normal(size=(4, 4)), RNG.normal(size=4)
KERNEL = RNG.normal(size=(2, 2, 3, 3))
LINEAR = {"coefficients": W.ravel().tolist(), "intercepts": B.tolist()}
# (domain, operator, weights in the order of its inputs, attributes)
FORMS = [
    ("ai.onnx.ml", "LinearClassifier", [], {"classlabels_ints": [3, 5, 7, 9]}),
    ("ai.onnx.ml", "LinearClassifier", [], {"classlabels_strings": list("abcd"), "post_transform": "SOFTMAX"}),
    ("ai.onnx.ml", "LinearClassifier", [], {"classlabels_ints": [0, 1, 2, 3], "post_transform": "LOGISTIC"}),
    *(("ai.onnx.ml", "Normalizer", [], {"norm": norm}) for norm in ("L1", "L2", "MAX")),
    ("ai.onnx.ml", "Scaler", [], {"offset": B.tolist(), "scale": W[0].tolist()}),
    ("com.microsoft", "BiasGelu", [B], {}),
    ("com.microsoft", "FastGelu", [B], {}),
    ("com.microsoft", "FastGelu", [], {}),
    ("com.microsoft", "FusedConv", [KERNEL], {"activation": "Relu", "pads": [1, 1, 1, 1]}),
    ("com.microsoft", "FusedConv", [KERNEL, B[:2]], {"activation": "Clip", "activation_params": [-0.5, 0.5]}),
    ("com.microsoft", "FusedConv", [KERNEL], {"activation": "HardSigmoid", "activation_params": [0.3, 0.4]}),
    ("com.microsoft", "FusedGemm", [W, B], {"activation": "Tanh", "transB": 1}),
    ("com.microsoft", "FusedGemm", [W, B], {"activation": "LeakyRelu", "activation_alpha": 0.3}),
    ("com.microsoft", "FusedMatMul", [W], {"transB": 1, "alpha": 0.5}),
    ("com.microsoft", "Gelu", [], {}),
    ("com.microsoft", "QuickGelu", [], {"alpha": 1.5}),
    ("com.microsoft", "SkipLayerNormalization", [W, B, B], {"epsilon": 1e-5}),
]  # fmt: skip


def _model(domain: str, op_type: str, weights: list, attributes: dict) -> tuple[onnx.ModelProto, np.ndarray]:
    inputs = IMAGES if op_type == "FusedConv" else X if op_type != "SkipLayerNormalization" else X[:4]
    names = [f"w{i}" for i in range(len(weights))]
    is_linear = op_type == "LinearClassifier"
    outputs = ["label", "y"] if is_linear else ["y"]
    attributes = {**LINEAR, **attributes} if is_linear else attributes
    made = node(op_type, ["x", *names], outputs, domain=domain, **attributes)
    model = model_of(made, x=inputs.shape, y=None, weights=dict(zip(names, weights, strict=True)), domains=[domain])
    return model, inputs


@pytest.mark.parametrize("form", FORMS, ids=[f"{f[1]}-{i}" for i, f in enumerate(FORMS)])
def test_an_operator_of_another_domain_agrees_with_onnxruntime(form):
    model, inputs = _model(*form)
    (y,) = DifferentiableModel(model)(torch.from_numpy(inputs), outputs=["y"])
    np.testing.assert_allclose(y.numpy(), values_of(model, "y", inputs), rtol=1e-4, atol=2e-5)


def test_every_claimed_operator_of_another_domain_is_tried():
    claimed = {(domain, op_type) for domain, known in DOMAINS.items() if domain for op_type in known}
    assert claimed == {form[:2] for form in FORMS}


@pytest.mark.parametrize("family", ["resnet", "mobilenet", "vit", "convnext"])
def test_a_network_that_onnxruntime_has_optimised_is_differentiated(family, tmp_path):
    plain = exported(family, "torchscript", 17)
    optimised = optimised_by_onnxruntime(plain, tmp_path)
    assert "com.microsoft" in {n.domain for n in optimised.graph.node}
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    expected, found = (DifferentiableModel(model)(x, outputs=["logits"])[0] for model in (plain, optimised))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    assert len(find_sites(optimised)) == len(find_sites(plain))


@pytest.mark.parametrize(
    ("op_type", "attributes"),
    [("FusedConv", {"activation": "Celu"}), ("LinearClassifier", {"post_transform": "PROBIT"})],
)
def test_a_form_of_another_domains_operator_that_is_not_known_is_refused(op_type, attributes):
    domain = "ai.onnx.ml" if op_type == "LinearClassifier" else "com.microsoft"
    with pytest.raises(CalibrationError, match=r"applies (Celu|PROBIT), which is not known here"):
        DifferentiableModel(model_of(node(op_type, ["x"], ["y"], domain=domain, **attributes), domains=[domain]))


@pytest.mark.parametrize(
    ("op_type", "domain", "reason"),
    [
        ("TreeEnsembleClassifier", "ai.onnx.ml", "a step function"),
        ("QuantizeLinear", "", "calibrate the model that was quantised"),
        ("Loop", "", "as often as the data say"),
    ],
)
def test_what_can_have_no_gradient_is_refused_with_the_reason(op_type, domain, reason):
    with pytest.raises(CalibrationError, match=reason):
        DifferentiableModel(model_of(node(op_type, ["x"], ["y"], domain=domain), domains=[domain] if domain else []))


def _branch(*nodes: onnx.NodeProto, weights: tuple = ()) -> onnx.GraphProto:
    result = helper.make_tensor_value_info("b", TensorProto.FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [result], list(weights))


def _choosing(condition: str, *before: onnx.NodeProto, **weights) -> onnx.ModelProto:
    three = helper.make_tensor("factor", TensorProto.FLOAT, [1], [3.0])
    then_branch = _branch(node("Mul", ["h", "factor"], ["b"]), weights=(three,))
    chosen = node("If", [condition], ["c"], then_branch=then_branch, else_branch=_branch(node("Neg", ["h"], ["b"])))
    return model_of(*before, node("Relu", ["x"], ["h"]), chosen, node("Add", ["c", "h"], ["y"]), weights=weights)


@pytest.mark.parametrize(("always", "factor"), [(True, 4.0), (False, 0.0)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_branch_chosen_by_a_constant_is_run_and_differentiated(always, factor, precision):
    model = DifferentiableModel(_choosing("always", always=np.array(always)), precision=precision)
    x = torch.tensor([[-1.0, 2.0, 4.0]], requires_grad=True)
    (y,) = model(x, outputs=["y"])
    y.sum().backward()
    assert y.tolist() == [[0, 2 * factor, 4 * factor]]
    assert x.grad.tolist() == [[0, factor, factor]]


def test_a_branch_chosen_by_the_input_sees_what_was_changed():
    before = [node("ReduceMax", ["x"], ["top"], keepdims=0), node("Greater", ["top", "two"], ["large"])]
    model = DifferentiableModel(_choosing("large", *before, two=2.0))
    for top, factor in ((1.0, -1.0), (3.0, 3.0)):
        (c,) = model(torch.tensor([[0.0, 0.0, top]]), outputs=["c"], at={"h": lambda h: h + 1})
        assert c.tolist() == [[factor, factor, factor * (top + 1)]]


def test_an_unknown_operator_inside_a_branch_is_named():
    branch = _branch(node("Own", ["x"], ["b"], domain="com.example", name="inner"))
    model = model_of(node("If", ["on"], ["y"], then_branch=branch, else_branch=branch), weights={"on": np.array(True)})
    with pytest.raises(CalibrationError, match="node 'inner'"):
        DifferentiableModel(model)
