"""The lint: one finding for each odd thing a graph can hold, and none of alarm for what people export."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from small_graphs import EXPORTS, exported, model_of, node
from torch_models import FAMILIES, build, example_of, export

from calibrate.inspection.lint import lint_model
from calibrate.inspection.lint_finding import LintFinding

WEIGHTS = {"w": np.eye(3), "v": 2.0 * np.eye(3)}
NETWORK = (node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["z"]))
CLASSES = node("Identity", ["z"], ["y"])


def lint(model: onnx.ModelProto) -> tuple[LintFinding, ...]:
    return lint_model(model, source=model.SerializeToString())


def the_finding(*nodes: onnx.NodeProto, weights=None, **options) -> LintFinding:
    (finding,) = lint(model_of(*nodes, weights={**WEIGHTS, **(weights or {})}, **options))
    return finding


def kinds(model: onnx.ModelProto) -> list[tuple[str, str]]:
    return [(finding.kind, finding.severity) for finding in lint(model)]


def branch(*nodes: onnx.NodeProto, output: str, weights: Sequence[TensorProto] = ()) -> onnx.GraphProto:
    return helper.make_graph(
        nodes, output, [], [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], weights
    )


def test_a_plain_network_gives_no_finding():
    assert lint(model_of(*NETWORK, CLASSES, weights=WEIGHTS)) == ()


@pytest.mark.parametrize("family", FAMILIES)
def test_no_usual_export_gives_a_finding(family):
    assert {(e, o): lint(exported(family, e, o)) for e, o in EXPORTS if lint(exported(family, e, o))} == {}


def test_transformers_get_notes_and_nothing_graver():
    image, words = (
        export(build(family), example_of(family=family), exporter="torchscript", opset=17) for family in ("vit", "text")
    )
    assert kinds(image) == [("path_around_sites", "note")]
    assert kinds(words) == [("decision_on_input", "note")]


def test_a_switch_from_the_input_to_the_output_is_an_alarm_that_names_the_way():
    finding = the_finding(
        *NETWORK, node("ReduceMax", ["x"], ["m"]), node("Mul", ["m", "evil"], ["e"]), node("Add", ["z", "e"], ["y"]),
        weights={"evil": np.ones(3)},
    )  # fmt: skip
    assert (finding.kind, finding.severity, finding.place) == ("path_around_network", "alarm", "x")
    assert "ReduceMax 'm', Mul 'e', Add 'y'" in finding.message


def test_a_switch_through_an_activation_is_no_less_an_alarm():
    finding = the_finding(*NETWORK, node("Relu", ["x"], ["e"]), node("Add", ["z", "e"], ["y"]))
    assert (finding.kind, finding.severity) == ("path_around_network", "alarm")


def test_a_switch_inside_a_branch_is_an_alarm():
    then, other = (branch(node("Identity", [name], [o]), output=o) for name, o in (("x", "t"), ("z", "e")))
    nodes = [*NETWORK, node("If", ["yes"], ["y"], then_branch=then, else_branch=other)]
    finding = the_finding(*nodes, weights={"yes": np.array(True)})
    assert (finding.kind, finding.severity) == ("path_around_network", "alarm")


def test_a_network_inside_a_branch_is_no_way_around_itself():
    inner = [branch(node("MatMul", ["r", "v"], [o]), output=o) for o in ("t", "e")]
    nodes = [*NETWORK[:2], node("If", ["yes"], ["y"], then_branch=inner[0], else_branch=inner[1])]
    assert lint(model_of(*nodes, weights={**WEIGHTS, "yes": np.array(True)})) == ()


def test_a_linear_layer_beside_the_network_is_a_warning_where_it_joins():
    finding = the_finding(*NETWORK, node("MatMul", ["x", "w"], ["e"]), node("Add", ["z", "e"], ["y"], name="join"))
    assert (finding.kind, finding.severity, finding.place) == ("path_around_sites", "warning", "Add 'join'")


def test_a_sum_before_the_last_layer_is_a_note():
    finding = the_finding(*NETWORK[:2], node("Add", ["h", "r"], ["s"]), node("MatMul", ["s", "v"], ["y"]))
    assert (finding.kind, finding.severity) == ("path_around_sites", "note")


def test_a_linear_model_is_told_to_have_nothing_to_bound():
    finding = the_finding(node("MatMul", ["x", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"]))
    assert (finding.kind, finding.severity) == ("no_sites", "note")


@pytest.mark.parametrize("kind", ["Greater", "Less", "Equal"])
def test_a_comparison_of_the_input_is_a_warning(kind):
    compared = [node(kind, ["x", "half"], ["c"]), node("Cast", ["c"], ["f"], to=TensorProto.FLOAT)]
    body = [node("MatMul", ["f", "w"], ["h"]), *NETWORK[1:]]
    finding = the_finding(*compared, *body, CLASSES, weights={"half": np.array(0.5)})
    assert (finding.kind, finding.severity, finding.place) == ("decision_on_input", "warning", f"{kind} 'c'")


def test_a_comparison_after_the_first_layer_is_none():
    nodes = [*NETWORK[:2], node("ArgMax", ["r"], ["a"], axis=1), node("Cast", ["a"], ["f"], to=TensorProto.FLOAT)]
    nodes += [node("MatMul", ["f", "w"], ["s"]), node("Add", ["r", "s"], ["t"]), node("MatMul", ["t", "v"], ["y"])]
    assert lint(model_of(*nodes, weights=WEIGHTS)) == ()


def test_a_comparison_that_reaches_no_output_is_none():
    assert lint(model_of(node("IsNaN", ["x"], ["c"]), *NETWORK, CLASSES, weights=WEIGHTS)) == ()


def test_shapes_are_no_values_of_the_input():
    shaped = [node("Shape", ["x"], ["s"]), node("Gather", ["s", "first"], ["n"]), node("Equal", ["n", "two"], ["c"])]
    shaped += [node("Cast", ["c"], ["f"], to=TensorProto.FLOAT), node("Add", ["z", "f"], ["y"])]
    weights = {**WEIGHTS, "first": np.array([0]), "two": np.array([2])}
    assert lint(model_of(*NETWORK, *shaped, weights=weights)) == ()


def test_an_unknown_domain_is_a_warning():
    finding = the_finding(*NETWORK, node("Hide", ["z"], ["y"], domain="far.away"), domains=["far.away"])
    assert (finding.kind, finding.severity) == ("unknown_domain", "warning")
    assert "'far.away'" in finding.message


def test_an_output_that_is_left_out_is_a_note():
    model = model_of(*NETWORK, CLASSES, weights=WEIGHTS)
    (finding,) = lint_model(model, source=model.SerializeToString(), dropped=["h"])
    assert (finding.kind, finding.severity, finding.place) == ("extra_output", "note", "h")


@pytest.mark.parametrize(("value", "n"), [(np.nan, 1), (np.inf, 1), (-np.inf, 0)])
def test_nan_and_infinity_among_the_weights_are_a_warning(value, n):
    bias = np.array([0.0, value, 0.0])
    found = lint(model_of(*NETWORK, node("Add", ["z", "b"], ["y"]), weights={**WEIGHTS, "b": bias}))
    assert [(f.kind, f.place) for f in found] == [("not_finite", "b")] * n


def test_constants_that_nobody_reads_are_one_note():
    finding = the_finding(*NETWORK, CLASSES, weights={"left": np.ones(3), "over": np.ones(3)})
    assert (finding.kind, finding.severity, finding.place) == ("unused_constant", "note", "left")
    assert "and 1 more" in finding.message


def test_a_weight_that_the_caller_may_replace_is_a_note():
    model = model_of(*NETWORK, CLASSES, weights=WEIGHTS)
    model.graph.input.append(helper.make_tensor_value_info("v", TensorProto.FLOAT, [3, 3]))
    assert kinds(model) == [("replaceable_weight", "note")]
    model.ir_version = 3  # in which every weight had to be an input
    assert kinds(model) == []


@pytest.mark.parametrize(("n_changed", "n_findings"), [(0, 0), (3, 1), (100, 0)])
def test_a_weight_that_is_stored_twice_with_a_few_changes_is_a_warning(n_changed, n_findings):
    twin = np.random.default_rng(0).normal(size=(10, 10))
    changed = twin.copy()
    changed.flat[:n_changed] += 1
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Relu", ["h"], ["r"]), node("MatMul", ["r", "v"], ["y"])]
    model = model_of(*nodes, x=("N", 10), y=("N", 10), weights={"w": twin, "v": changed})
    assert kinds(model) == [("stored_twice", "warning")] * n_findings


def test_weights_of_mostly_ones_are_no_twins():
    ones = np.ones(100)
    other = ones.copy()
    other[0] = 2
    nodes = [node("Mul", ["x", "a"], ["p"]), node("MatMul", ["p", "w"], ["h"]), node("Relu", ["h"], ["r"])]
    nodes += [node("Mul", ["r", "b"], ["q"]), node("MatMul", ["q", "v"], ["y"])]
    weights = {"a": ones, "b": other, "w": np.eye(100), "v": 2 * np.eye(100)}
    assert lint(model_of(*nodes, x=("N", 100), y=("N", 100), weights=weights)) == ()


def test_a_weight_inside_the_file_and_beside_it_is_an_alarm():
    model = model_of(*NETWORK, CLASSES, weights=WEIGHTS)
    stored = onnx.ModelProto()
    stored.CopyFrom(model)
    stored.graph.initializer[0].data_location = TensorProto.EXTERNAL
    (finding,) = lint_model(model, source=stored.SerializeToString())
    assert (finding.kind, finding.severity, finding.place) == ("stored_twice", "alarm", "w")


def test_a_name_that_a_branch_gives_to_other_values_is_an_alarm():
    twice, thrice = (numpy_helper.from_array(np.float32(k * np.eye(3)), "v") for k in (2, 3))
    held = {"t": twice, "e": thrice}
    branches = [branch(node("MatMul", ["r", "v"], [o]), output=o, weights=[v]) for o, v in held.items()]
    deciding = node("If", ["yes"], ["z"], then_branch=branches[0], else_branch=branches[1])
    nodes = [*NETWORK[:2], node("MatMul", ["r", "v"], ["u"]), deciding, node("Add", ["z", "u"], ["y"])]
    finding = the_finding(*nodes, weights={"yes": np.array(True)})
    assert (finding.kind, finding.severity, finding.place) == ("stored_twice", "alarm", "v")


def test_the_gravest_comes_first():
    nodes = [*NETWORK, node("Add", ["z", "x"], ["y"])]
    severities = [f.severity for f in lint(model_of(*nodes, weights={**WEIGHTS, "left": np.ones(3)}))]
    assert severities == ["alarm", "note"]
