"""Add nodes to an ONNX graph, in the dialect of its opset."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from calibrate.names import all_names, fresh_name

__all__ = ["GraphWriter"]

_AXES_ARE_INPUTS = 18  # the opset since which reductions take their axes as an input
_FREE_INITIALIZERS = 4  # the IR version since which an initializer need not be an input of the graph


class GraphWriter:
    """Appends nodes, constants and outputs to a copy of a model.

    Args:
        model: It is left as it is.
    """

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = onnx.ModelProto()
        self.model.CopyFrom(model)
        self._taken = set(all_names(model.graph))
        self._opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))

    def constant(self, values: NDArray[np.generic], name: str) -> str:
        """Add a constant; return its name."""
        tensor = numpy_helper.from_array(np.asarray(values), self.fresh(name))
        if self.model.ir_version >= _FREE_INITIALIZERS:
            self.model.graph.initializer.append(tensor)
        else:
            self.model.graph.node.append(helper.make_node("Constant", [], [tensor.name], value=tensor))
        return tensor.name

    def node(self, operator: str, inputs: Sequence[str], name: str, **attributes: Any) -> str:
        """Add a node with one output; return the output's name."""
        output = self.fresh(name)
        self.model.graph.node.append(helper.make_node(operator, list(inputs), [output], name=output, **attributes))
        return output

    def float32(self, tensor: str, name: str) -> str:
        """Add a tensor in float32; return its name."""
        return self.node("Cast", [tensor], name, to=onnx.TensorProto.FLOAT)

    def reduce(self, operator: str, tensor: str, axes: Sequence[int], name: str, *, keepdims: bool = True) -> str:
        """Add ReduceMax or ReduceMean over these axes; return its name."""
        if not axes:
            return tensor
        if self._opset < _AXES_ARE_INPUTS:
            return self.node(operator, [tensor], name, axes=list(axes), keepdims=int(keepdims))
        where = self.constant(np.array(axes, dtype=np.int64), f"{name}/axes")
        return self.node(operator, [tensor, where], name, keepdims=int(keepdims))

    def output(self, tensor: str, dtype: str, shape: Sequence[str | int]) -> None:
        """Make a tensor an output of the graph."""
        element = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        self.model.graph.output.append(helper.make_tensor_value_info(tensor, element, list(shape)))

    def fresh(self, name: str) -> str:
        """Return the name, numbered where it is taken, and take it."""
        return fresh_name(name, self._taken)
