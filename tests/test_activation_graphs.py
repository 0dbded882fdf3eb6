"""What counts as one activation function and what does not, in graphs written out by hand."""

import numpy as np
import pytest
from onnx import TensorProto, helper
from small_graphs import model_of, node

from calibrate.activations import find_activations
from calibrate.graph import find_sites, survey_sites
from guard.errors import CalibrationError

SCALE = np.array([2.0, -1.0, 1.0])


def test_a_normalisation_spelled_out_per_channel_belongs_to_what_follows():
    model = model_of(
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["x", "gate"], ["silu"]),
        node("Mul", ["silu", "scale"], ["scaled"]),
        node("Add", ["scaled", "shift"], ["shifted"]),
        node("Relu", ["shifted"], ["relu"]),
        node("Neg", ["relu"], ["y"]),
        weights={"scale": SCALE, "shift": SCALE},
    )
    assert [site.tensor for site in find_sites(model)] == ["silu", "relu"]


@pytest.mark.parametrize(
    ("operator", "inputs", "end"),
    [
        ("Mul", ["silu", "half"], "scaled"),
        ("Mul", ["half", "silu"], "scaled"),
        ("Div", ["silu", "half"], "scaled"),
        ("Div", ["half", "silu"], "silu"),
        ("Mul", ["silu", "negative"], "silu"),
    ],
)
def test_only_a_positive_scalar_factor_is_part_of_a_gated_activation(operator, inputs, end):
    model = model_of(
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["gate", "x"], ["silu"]),
        node(operator, inputs, ["scaled"]),
        node("Neg", ["scaled"], ["y"]),
        weights={"half": 0.5, "negative": -1.0},
    )
    assert [site.tensor for site in find_sites(model)] == [end]


def test_a_factor_is_no_part_where_the_unscaled_tensor_is_read_elsewhere():
    model = model_of(
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["x", "gate"], ["silu"]),
        node("Mul", ["silu", "half"], ["scaled"]),
        node("Add", ["scaled", "silu"], ["y"]),
        weights={"half": 0.5},
    )
    assert [site.tensor for site in find_sites(model)] == ["silu"]


def test_a_factor_is_no_part_where_the_unscaled_tensor_is_an_output():
    model = model_of(
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["x", "gate"], ["y"]),
        node("Mul", ["y", "half"], ["scaled"]),
        weights={"half": 0.5},
    )
    assert [activation.tensor for activation in find_activations(model.graph)] == ["y"]


def test_an_inner_activation_that_others_read_stays_a_site():
    model = model_of(
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["x", "gate"], ["silu"]),
        node("Add", ["silu", "gate"], ["y"]),
    )
    assert [site.tensor for site in find_sites(model)] == ["gate", "silu"]


def test_a_product_with_something_from_elsewhere_is_not_gated():
    model = model_of(
        node("MatMul", ["x", "w"], ["h"]),
        node("Sigmoid", ["h"], ["gate"]),
        node("Mul", ["x", "gate"], ["product"]),
        node("Neg", ["product"], ["y"]),
        weights={"w": np.eye(3)},
    )
    assert [site.tensor for site in find_sites(model)] == ["gate"]


def test_a_squared_relu_is_found_as_its_relu():
    model = model_of(node("Relu", ["x"], ["relu"]), node("Mul", ["relu", "relu"], ["y"]))
    assert [site.tensor for site in find_sites(model)] == ["relu"]


def test_what_depends_on_no_input_is_no_site():
    model = model_of(
        node("Clip", ["w", "", "one"], ["clipped"]),
        node("Relu", ["clipped"], ["constant"]),
        node("MatMul", ["x", "constant"], ["h"]),
        node("Relu", ["h"], ["relu"]),
        node("Neg", ["relu"], ["y"]),
        weights={"w": np.eye(3), "one": 1.0},
    )
    assert [site.tensor for site in find_sites(model)] == ["relu"]


def test_arithmetic_on_shapes_is_no_site():
    model = model_of(
        node("Shape", ["x"], ["shape"]),
        node("Clip", ["shape", "", "many"], ["clipped"]),
        node("Reshape", ["x", "clipped"], ["h"]),
        node("Relu", ["h"], ["relu"]),
        node("Neg", ["relu"], ["y"]),
        weights={"many": np.array(99)},
    )
    assert [site.tensor for site in find_sites(model)] == ["relu"]


def test_an_activation_of_integers_is_no_site():
    model = model_of(
        node("Cast", ["x"], ["whole"], to=TensorProto.INT32),
        node("Clip", ["whole", "", "many"], ["clipped"]),
        node("Cast", ["clipped"], ["y"], to=TensorProto.FLOAT),
        weights={"many": np.array(9, dtype=np.int32)},
    )
    with pytest.raises(CalibrationError, match="no activation to bound"):
        find_sites(model)


def test_an_activation_that_is_the_output_is_no_site():
    with pytest.raises(CalibrationError, match="no activation to bound"):
        find_sites(model_of(node("Relu", ["x"], ["y"])))


def test_an_activation_whose_input_is_only_read_in_a_subgraph_is_live():
    branch = helper.make_graph(
        [node("Neg", ["x"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3])]
    )
    model = model_of(
        node("If", ["always"], ["h"], then_branch=branch, else_branch=branch),
        node("Relu", ["h"], ["relu"]),
        node("Neg", ["relu"], ["y"]),
        weights={"always": np.array(True)},
    )
    assert [site.tensor for site in find_sites(model)] == ["relu"]


def test_what_only_a_subgraph_reads_as_well_ends_a_gated_activation():
    branch = helper.make_graph(
        [node("Neg", ["silu"], ["b"])], "branch", [], [helper.make_tensor_value_info("b", TensorProto.FLOAT, ["N", 3])]
    )
    model = model_of(
        node("Sigmoid", ["x"], ["gate"]),
        node("Mul", ["x", "gate"], ["silu"]),
        node("Mul", ["silu", "half"], ["scaled"]),
        node("If", ["always"], ["h"], then_branch=branch, else_branch=branch),
        node("Add", ["scaled", "h"], ["y"]),
        weights={"half": 0.5, "always": np.array(True)},
    )
    assert [site.tensor for site in find_sites(model)] == ["silu"]


def test_a_convolution_fused_with_its_activation_is_a_site():
    model = model_of(
        node("FusedConv", ["x", "w"], ["h"], domain="com.microsoft", activation="Relu"),
        node("FusedConv", ["h", "w"], ["y"], domain="com.microsoft"),
        x=("N", 2, 4, 4), y=("N", 2, 4, 4), weights={"w": np.ones((2, 2, 1, 1))}, domains=["com.microsoft"],
    )  # fmt: skip
    (site,) = find_sites(model)
    assert (site.tensor, site.function, site.channel_axis) == ("h", "Relu", 1)


def test_channels_are_second_where_a_one_dimensional_convolution_made_them():
    model = model_of(
        node("Conv", ["x", "w"], ["h"]), node("Relu", ["h"], ["relu"]), node("Neg", ["relu"], ["y"]),
        x=("N", 2, 9), y=("N", 4, 9), weights={"w": np.ones((4, 2, 1))},
    )  # fmt: skip
    assert [site.channel_axis for site in find_sites(model)] == [1]


@pytest.mark.parametrize(("order", "axis"), [([0, 2, 3, 1], 3), ([0, 2, 1, 3], 2)])
def test_channels_are_followed_through_transposing(order, axis):
    model = model_of(
        node("Conv", ["x", "w"], ["h"]), node("Transpose", ["h"], ["t"], perm=order), node("Cast", ["t"], ["c"], to=1),
        node("Add", ["c", "b"], ["a"]), node("Relu", ["a"], ["relu"]), node("Neg", ["relu"], ["y"]),
        x=("N", 2, 5, 7), y=None, weights={"w": np.ones((4, 2, 1, 1)), "b": 1.0},
    )  # fmt: skip
    (site,) = find_sites(model)
    assert (site.channel_axis, site.shape[site.channel_axis]) == (axis, 4)


def test_a_rank_that_onnxruntime_cannot_infer_is_seen_by_running_one_row():
    model = model_of(
        node("Shape", ["x"], ["shape"]), node("Slice", ["shape", "zero", "one"], ["n"]),
        node("Concat", ["n", "rest"], ["all"], axis=0), node("Sub", ["n", "n"], ["start"]),
        node("Slice", ["all", "start", "end"], ["wanted"]),
        node("Reshape", ["x", "wanted"], ["h"]), node("Relu", ["h"], ["relu"]), node("Neg", ["relu"], ["y"]),
        x=("N", 6), y=None,
        weights={"zero": np.array([0]), "one": np.array([1]), "rest": np.array([2, 3]), "end": np.array([3])},
    )  # fmt: skip
    assert [site.shape for site in find_sites(model)] == [(None, 2, 3)]


def test_an_activation_whose_rank_nobody_can_tell_is_left_out_by_name():
    model = model_of(
        node("Relu", ["x"], ["plain"]), node("ReduceSum", ["plain"], ["sum"], keepdims=0),
        node("Cast", ["sum"], ["size"], to=TensorProto.INT64), node("Unsqueeze", ["size", "zero"], ["start"]),
        node("Slice", ["sizes", "start", "end"], ["wanted"]), node("Reshape", ["plain", "wanted"], ["h"]),
        node("Relu", ["h"], ["odd"]), node("Flatten", ["odd"], ["y"]),
        y=None, weights={"zero": np.array([0]), "sizes": np.array([7, -1, 3]), "end": np.array([9])},
    )  # fmt: skip
    sites, unranked = survey_sites(model)
    assert ([site.tensor for site in sites], unranked) == (["plain"], ("odd",))


def test_the_sigmoid_that_gives_the_probabilities_is_no_site():
    model = model_of(
        node("Sigmoid", ["x"], ["inner"]), node("MatMul", ["inner", "w"], ["h"]), node("Sigmoid", ["h"], ["p"]),
        node("Sub", ["one", "p"], ["q"]), node("Concat", ["q", "p"], ["y"], axis=1),
        y=("N", 2), weights={"w": np.ones((3, 1)), "one": 1.0},
    )  # fmt: skip
    assert [site.tensor for site in find_sites(model)] == ["inner"]


def test_a_float16_site_says_so():
    model = model_of(node("Relu", ["x"], ["relu"]), node("Neg", ["relu"], ["y"]), dtype=TensorProto.FLOAT16)
    assert [site.dtype for site in find_sites(model)] == ["float16"]
