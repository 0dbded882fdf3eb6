"""An ONNX model as the nodes and weights that run in torch."""

from collections.abc import Collection, Iterable, Iterator

import onnx
from onnx import inliner
from torch import Tensor

from calibrate.gradients import NoGradientError
from calibrate.operators import OPERATORS, TORCH_TYPES, Node, find_obstacle, read_node, read_tensor

__all__ = ["declared_batch", "inline", "read_nodes", "read_weights"]


def inline(model: onnx.ModelProto) -> onnx.ModelProto:
    """Write out the model's functions, and the operators unknown here that ONNX defines by others (Attention)."""
    if model.functions:
        model = inliner.inline_local_functions(model)
    own = {node.op_type for node in _nodes(model.graph) if node.domain in {"", "ai.onnx"}} - {"If"}
    unknown = [("", op_type) for op_type in sorted(own - OPERATORS.keys())]
    if not unknown:
        return model
    try:
        return inliner.inline_selected_functions(
            _with_defaults(model, {op_type for _, op_type in unknown}),
            unknown,
            exclude=False,
            inline_schema_functions=True,
        )
    except RuntimeError as error:
        names = ", ".join(op_type for _, op_type in unknown)
        raise NoGradientError(
            f"no gradient can be computed through {names}, which ONNX cannot write out by other operators in this form"
        ) from error


def _with_defaults(model: onnx.ModelProto, op_types: Collection[str]) -> onnx.ModelProto:
    """Return a copy whose nodes of these types carry the defaults of their attributes, which writing out forgets."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    opset = next((o.version for o in model.opset_import if o.domain in {"", "ai.onnx"}), 1)
    for node in _nodes(copy.graph):
        if node.op_type not in op_types or not onnx.defs.has(node.op_type):
            continue
        given = {attribute.name for attribute in node.attribute}
        known = onnx.defs.get_schema(node.op_type, opset, "").attributes
        defaults = (a.default_value for name, a in known.items() if name not in given)
        node.attribute.extend(d for d in defaults if d.type != onnx.AttributeProto.UNDEFINED)
    return copy


def _nodes(graph: onnx.GraphProto) -> Iterator[onnx.NodeProto]:
    """Yield the nodes of a graph and of its sub-graphs."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            yield from _nodes(attribute.g)


def read_nodes(model: onnx.ModelProto) -> list[Node]:
    """Return the nodes of the graph in order.

    Raises:
        NoGradientError: Some cannot be run in torch.
    """
    opsets = {"" if o.domain == "ai.onnx" else o.domain: o.version for o in model.opset_import}
    nodes = [read_node(proto, opsets) for proto in model.graph.node]
    obstacles = [obstacle for node in nodes if (obstacle := find_obstacle(node)) is not None]
    if obstacles:
        raise NoGradientError(f"no gradient can be computed through {'; '.join(obstacles)}")
    return nodes


def read_weights(initializers: Iterable[onnx.TensorProto]) -> dict[str, Tensor]:
    """Return the weights by name.

    Raises:
        NoGradientError: One is of a type with which torch does not compute.
    """
    weights = {}
    for proto in initializers:
        if proto.data_type not in TORCH_TYPES:
            kind = onnx.TensorProto.DataType.Name(proto.data_type)
            raise NoGradientError(f"the weight '{proto.name}' is of type {kind}, with which torch does not compute")
        weights[proto.name] = read_tensor(proto)
    return weights


def declared_batch(inputs: Iterable[onnx.ValueInfoProto]) -> int | None:
    """Return the size of axis 0 that the first input with a fixed one declares."""
    axes = (axis for i in inputs for axis in i.type.tensor_type.shape.dim[:1])
    return next((int(axis.dim_value) for axis in axes if axis.dim_value > 0), None)
