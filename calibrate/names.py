"""The names that an ONNX graph uses, and new ones."""

from collections.abc import Iterator
from itertools import chain, count

import onnx

__all__ = ["all_names", "fresh_name"]


def all_names(graph: onnx.GraphProto) -> Iterator[str]:
    """Yield every name that a graph uses, its sub-graphs included."""
    yield from (value.name for value in chain(graph.input, graph.output, graph.value_info))
    yield from (tensor.name for tensor in graph.initializer)
    yield from (sparse.values.name for sparse in graph.sparse_initializer)
    for node in graph.node:
        yield from (node.name, *node.input, *node.output)
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from all_names(inner)


def fresh_name(name: str, taken: set[str]) -> str:
    """Return the name, numbered where it is taken, and take it."""
    numbered = (f"{name}_{k}" for k in count(2))
    fresh = name if name not in taken else next(n for n in numbered if n not in taken)
    taken.add(fresh)
    return fresh
