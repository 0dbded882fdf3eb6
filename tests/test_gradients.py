"""A model without a gradient is told in one line by everything that takes one."""

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from unit_problems import two_classes

from calibrate.bounds import METHODS
from calibrate.gradients import NoGradientError, backward, gradient


def _stepped():
    """Return a problem whose logits are taken from whether an activation exceeds 1: no gradient gets past that."""
    problem = two_classes(n=200, max_accuracy_drop=0.9)
    model = onnx.ModelProto()
    model.CopyFrom(problem.model)
    model.graph.initializer.append(numpy_helper.from_array(np.array(1, dtype=np.float32), "one"))
    model.graph.node[1].input[0] = "step"
    model.graph.node.insert(1, helper.make_node("Greater", ["a", "one"], ["exceeds"]))
    model.graph.node.insert(2, helper.make_node("Cast", ["exceeds"], ["step"], to=TensorProto.FLOAT))
    return replace(problem, model=model)


@pytest.mark.parametrize("method", ["mmac", "mmac-published", "unit", "unit-published"])
def test_no_bounds_are_learned_without_a_gradient(method):
    with pytest.raises(NoGradientError, match="no gradient gets through the model"):
        METHODS[method](_stepped())


def test_a_gradient_that_torch_cannot_compute_is_told_with_its_reason():
    x = torch.ones(3, requires_grad=True)
    total = x.square().sum()
    torch.testing.assert_close(gradient(total, x), torch.full((3,), 2.0))
    for compute in (lambda: backward(total), lambda: gradient(total, x)):
        with pytest.raises(NoGradientError, match="cannot be computed: Trying to backward through the graph a second"):
            compute()
