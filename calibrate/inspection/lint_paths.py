"""Follow a graph from its inputs to its outputs for what no bounded activation and no learned layer touches."""

from collections.abc import Collection, Iterable, Iterator, Sequence

import onnx
from onnx import TensorProto

from calibrate.activations import find_activations
from calibrate.inspection.flat_graph import FlatGraph, Operator, Stops
from calibrate.inspection.lint_finding import LintFinding, Severity

__all__ = ["lint_outputs", "lint_paths"]

_WEIGHT_PLACES = {
    **dict.fromkeys(("Conv", "ConvTranspose", "ConvInteger", "RNN", "LSTM", "GRU"), (1,)),
    **dict.fromkeys(("Gemm", "MatMul", "MatMulInteger", "Einsum"), (0, 1)),
    **dict.fromkeys(("QLinearConv", "QLinearMatMul"), (0, 3)),
    **dict.fromkeys(("FusedConv", "Attention", "QAttention", "MatMulNBits", "DynamicQuantizeMatMul"), (1,)),
    **dict.fromkeys(("FusedGemm", "FusedMatMul", "QGemm", "MatMulIntegerToFloat"), (0, 1)),
    "Gather": (0,),
}
"""Operators that a network learns, with the places of their weights. A Gather from constants is an embedding."""

_LEARNED_WHOLE = frozenset({
    "LinearClassifier", "LinearRegressor", "SVMClassifier", "SVMRegressor", "TreeEnsemble", "TreeEnsembleClassifier",
    "TreeEnsembleRegressor", "EmbedLayerNormalization",
})  # fmt: skip
_DECIDING = frozenset({
    "If", "Loop", "Where", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "ArgMax", "ArgMin", "TopK",
    "Hardmax", "NonZero", "IsNaN", "IsInf", "Sign",
})  # fmt: skip
_KNOWN_DOMAINS = frozenset({"ai.onnx.ml", "com.microsoft", "com.microsoft.nchwc", "com.ms.internal.nhwc"})
_FLOATS = frozenset({TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE, TensorProto.BFLOAT16})
_MOST_STEPS = 6  # of a way that is told


def lint_paths(model: onnx.ModelProto, flat: FlatGraph) -> Iterator[LintFinding]:
    """Yield what stands out in how the graph is wired.

    Args:
        model: The parsed model.
        flat: Its graph written out.
    """
    is_learned = _learned_in(flat)
    tokens = _tokens(flat, is_learned)
    sites = {a.tensor for a in find_activations(model.graph)}.difference(flat.outputs)
    yield from _unknown_domains(flat)
    around_network = list(_ways_around_network(flat, is_learned, tokens))
    yield from around_network or _ways_around_sites(flat, is_learned, sites)
    yield from _decisions_on_inputs(flat, is_learned, tokens)


def _learned_in(flat: FlatGraph) -> Stops:
    """Return what tells the operators that compute with weights of their own."""
    live = flat.reach(flat.inputs)

    def is_learned(operator: Operator) -> bool:
        name = operator.op_type.rpartition(".")[2]
        held = (operator.inputs[place] for place in _WEIGHT_PLACES.get(name, ()) if place < len(operator.inputs))
        return name in _LEARNED_WHOLE or any(tensor and tensor not in live for tensor in held)

    return is_learned


def _tokens(flat: FlatGraph, is_learned: Stops) -> frozenset[str]:
    """Return the integer and boolean inputs of a model that looks words up in a table: ids, masks and positions."""
    exact = [name for name, kind in flat.inputs.items() if kind.tensor_type.elem_type not in _FLOATS]
    plain = flat.reach(exact, stops=is_learned)
    looked_up = (o.inputs[1] for o in flat.operators if o.op_type == "Gather" and is_learned(o))
    return frozenset(exact) if any(name in plain for name in looked_up) else frozenset()


def _unknown_domains(flat: FlatGraph) -> Iterator[LintFinding]:
    for operator in flat.operators:
        domain = operator.op_type.rpartition(".")[0]
        if domain and domain not in _KNOWN_DOMAINS:
            message = f"an operator of the domain '{domain}' runs code that nothing here can look into"
            yield LintFinding(kind="unknown_domain", severity="warning", place=str(operator), message=message)


def lint_outputs(dropped: Iterable[str]) -> Iterator[LintFinding]:
    """Yield the outputs of a file that nothing guarded gives."""
    for name in dropped:
        message = "the model gives this output besides the classes; the guard does not look at it, nor hand it on"
        yield LintFinding(kind="extra_output", severity="note", place=name, message=message)


def _ways_around_network(flat: FlatGraph, is_learned: Stops, tokens: Collection[str]) -> Iterator[LintFinding]:
    """Yield the ways from an input to the classes past every learned layer, of a model that has such layers."""
    output = flat.outputs[0]
    needed = flat.lead([output])
    if not any(is_learned(o) for o in flat.operators if not needed.isdisjoint(o.outputs)):
        return
    for name in flat.inputs:
        reached = flat.reach([name], stops=is_learned)
        if output in reached:
            severity: Severity = "warning" if name in tokens else "alarm"
            message = (
                "the output depends on this input past every learned layer, as in an architectural backdoor, by way of"
                f" {_told(flat.way(output, reached))}"
            )
            yield LintFinding(kind="path_around_network", severity=severity, place=name, message=message)


def _ways_around_sites(flat: FlatGraph, is_learned: Stops, sites: Collection[str]) -> Iterator[LintFinding]:
    """Yield the ways from an input to the classes that no bounded activation lies on."""
    output = flat.outputs[0]
    around = flat.reach(flat.inputs, barred=sites)
    if not sites:
        message = "the model has no activation function, so that nothing in it can be bounded"
        yield LintFinding(kind="no_sites", severity="note", place=output, message=message)
    elif output in around:
        yield _late_join(flat, is_learned, around, flat.reach(sites)) or LintFinding(
            kind="path_around_sites",
            severity="note",
            place=output,
            message="a sum of layers, such as a transformer's residual stream, leads from the input to the output"
            " around every bounded activation, so that bounds hold only part of what passes",
        )


def _late_join(
    flat: FlatGraph, is_learned: Stops, around: Collection[str], behind: Collection[str]
) -> LintFinding | None:
    """Return the first place after the last learned layer where something unbounded joins what is bounded."""
    after_layers = flat.lead([flat.outputs[0]], stops=is_learned)
    for operator in flat.operators:
        bounded = [name in behind for name in operator.inputs if name in around or name in behind]
        if any(bounded) and not all(bounded) and not after_layers.isdisjoint(operator.outputs):
            message = "what no bounded activation touches joins the output here, after the last learned layer"
            return LintFinding(kind="path_around_sites", severity="warning", place=str(operator), message=message)
    return None


def _decisions_on_inputs(flat: FlatGraph, is_learned: Stops, tokens: Collection[str]) -> Iterator[LintFinding]:
    """Yield the first operators that decide by an input before any learned layer has seen it."""
    needed = flat.lead([flat.outputs[0]])
    raw = flat.reach(flat.inputs, stops=lambda o: is_learned(o) or o.op_type in _DECIDING)
    by_token = flat.reach(tokens, stops=is_learned)
    for operator in flat.operators:
        # A Where decides by its first input alone.
        read = operator.inputs[:1] if operator.op_type == "Where" else operator.inputs
        met = [name for name in read if name in raw]
        if operator.op_type not in _DECIDING or not met or needed.isdisjoint(operator.outputs):
            continue
        message = "decides by the input as it comes, before any learned layer"
        if is_token := all(name in by_token for name in met):
            message += "; of word ids and masks that is usual"
        severity: Severity = "note" if is_token else "warning"
        yield LintFinding(kind="decision_on_input", severity=severity, place=str(operator), message=message)


def _told(way: Sequence[str]) -> str:
    shown = way if len(way) <= _MOST_STEPS else [*way[: _MOST_STEPS // 2], "...", *way[-_MOST_STEPS // 2 :]]
    return ", ".join(shown) or "nothing at all"
