"""What each way of putting per-channel bounds into a graph costs, against the original, in one run."""

from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np
import onnx
from onnx import helper, numpy_helper

from benchmarks.models import write_resnet18
from benchmarks.timing import medians_s
from calibrate.edit import insert_bounds
from calibrate.graph import find_sites, serialize
from calibrate.sites import ActivationBounds, Site
from guard.model import OrtModel
from guard.types import FloatArray

__all__ = ["measure"]

BATCHES = {1: 60, 8: 20, 64: 6}  # rounds per batch size

Nodes = list[onnx.NodeProto]


def measure(out: Path) -> Iterator[str]:
    """Yield a table: latency of the bounded graph divided by the original's, per way and batch size."""
    original = onnx.load(write_resnet18(out / "resnet18.onnx"))
    sites = find_sites(original)
    rng = np.random.default_rng(0)
    per_channel = {s.tensor: (1 + 3 * rng.random((1, s.shape[1] or 1, 1, 1))).astype(np.float32) for s in sites}
    per_site = {t: np.asarray(b.max()) for t, b in per_channel.items()}
    graphs = {
        "original": original,
        "Clip, one bound per site": _edited(original, per_site, sites),
        "Min, per channel (ours)": _edited(original, per_channel, sites),
        "Less and Where, per channel": _rewritten(original, per_channel, _where),
        "b - Relu(b - x) by BatchNormalization, not exact": _rewritten(original, per_channel, _reflected),
    }
    models = {name: OrtModel(serialize(graph), label=name) for name, graph in graphs.items()}
    yield f"ResNet-18, width 64, 32 x 32, {len(sites)} sites; ratios of medians within one run.\n"
    yield f"| way | {' | '.join(f'batch {n}' for n in BATCHES)} |"
    yield f"|---|{'---|' * len(BATCHES)}"
    columns = [_ratios(models, n, rounds) for n, rounds in BATCHES.items()]
    for name in models:
        yield f"| {name} | {' | '.join(column[name] for column in columns)} |"


def _ratios(models: Mapping[str, OrtModel], n: int, rounds: int) -> dict[str, str]:
    inputs = np.random.default_rng(1).random((n, 3, 32, 32), dtype=np.float32)
    medians = medians_s({k: partial(m.run, inputs, ["logits"]) for k, m in models.items()}, rounds=rounds)
    base = medians["original"]
    return {k: f"{s / base:.2f}" if k != "original" else f"1 ({base * 1000:.1f} ms)" for k, s in medians.items()}


def _edited(model: onnx.ModelProto, upper: Mapping[str, FloatArray], sites: tuple[Site, ...]) -> onnx.ModelProto:
    return insert_bounds(model, ActivationBounds(method="benchmark", settings={}, upper=upper), sites)


def _rewritten(
    model: onnx.ModelProto,
    upper: Mapping[str, FloatArray],
    replace: Callable[[onnx.GraphProto, str, FloatArray], Nodes],
) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    nodes: Nodes = []
    for node in copy.graph.node:
        nodes.append(node)
        if node.output[0] in upper:
            name = node.output[0]
            node.output[0] = f"{name}/raw"
            nodes += replace(copy.graph, name, upper[name])
    kept = [onnx.NodeProto.FromString(n.SerializeToString()) for n in nodes]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    return copy


def _where(graph: onnx.GraphProto, name: str, bound: FloatArray) -> Nodes:
    graph.initializer.append(numpy_helper.from_array(bound, f"{name}/b"))
    return [
        helper.make_node("Less", [f"{name}/raw", f"{name}/b"], [f"{name}/below"]),
        helper.make_node("Where", [f"{name}/below", f"{name}/raw", f"{name}/b"], [name]),
    ]


def _reflected(graph: onnx.GraphProto, name: str, bound: FloatArray) -> Nodes:
    n = bound.size
    values = {"s": np.full(n, -1), "b": bound.ravel(), "m": np.zeros(n), "v": np.ones(n)}
    for key, value in values.items():
        graph.initializer.append(numpy_helper.from_array(value.astype(np.float32), f"{name}/{key}"))
    flip = [f"{name}/{key}" for key in values]
    return [
        helper.make_node("BatchNormalization", [f"{name}/raw", *flip], [f"{name}/flipped"], epsilon=0.0),
        helper.make_node("Relu", [f"{name}/flipped"], [f"{name}/rest"]),
        helper.make_node("BatchNormalization", [f"{name}/rest", *flip], [name], epsilon=0.0),
    ]
