"""IBD-PSC: the class of a triggered image survives having the last layers amplified.

Hou et al., *IBD-PSC: Input-level Backdoor Detection via Parameter-oriented Scaling Consistency* (ICML 2024, arXiv
2405.09786). Scale and shift of the last k BatchNorm layers are multiplied by 1.5, for n = 5 values of k from the
smallest one with which more than a share xi = 0.6 of labelled clean images is misclassified (Eq. 4); the score is the
mean probability that these copies give to the class that the original predicts, and 0.9 the threshold. The released
code amplifies k + 1 to k + n layers, and never tries all of them.

In ONNX a BatchNorm is mostly folded into the convolution before it, and multiplying that one's weight and bias is the
same (exactly: both multiply what the pair gives). So the layers are here, in the order of the graph, the convolutions
that no BatchNormalization follows, and the BatchNormalization and LayerNormalization nodes. Chosen here: where the
error never passes xi, the copies are those with most layers; past all layers there are no more copies.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx
from onnx import numpy_helper

from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.protocol import Scorer
from guard.errors import CalibrationError
from guard.types import FloatArray, IntArray

__all__ = ["amplified", "find_layers", "first_count", "fit_ibd_psc"]

N_COPIES = 5
FACTOR = 1.5
ERROR_RATE = 0.6
THRESHOLD = 0.9
_NORMALIZATIONS = ("BatchNormalization", "LayerNormalization")
_WEIGHTS = (1, 2)  # the inputs of all these operators that scale and shift, or weigh and bias


def fit_ibd_psc(classifier: OnnxClassifier, clean: FloatArray, labels: IntArray) -> Scorer:
    """Choose the copies on labelled clean images.

    Raises:
        CalibrationError: The model has no layer to amplify.
    """
    layers = find_layers(classifier.model)
    if not layers:
        raise CalibrationError("the model has neither convolutions nor normalisations with weights; nothing to amplify")
    first = first_count(classifier, layers, clean, labels)
    counts = range(first, min(first + N_COPIES, len(layers) + 1))
    copies = [classifier.variant(amplified(classifier.model, layers[-count:])) for count in counts]

    def score(inputs: FloatArray) -> FloatArray:
        rows, predicted = np.arange(len(inputs)), classifier.predict(inputs)
        found: FloatArray = np.mean([copy.probabilities(inputs)[rows, predicted] for copy in copies], axis=0)
        return found

    return score


def first_count(classifier: OnnxClassifier, layers: Sequence[int], clean: FloatArray, labels: IntArray) -> int:
    """Return how many last layers the first copy amplifies (Eq. 4)."""
    for count in range(1, len(layers) + 1):
        copy = classifier.variant(amplified(classifier.model, layers[-count:]))
        if (copy.predict(clean) != labels).mean() > ERROR_RATE:
            return count
    return max(1, len(layers) - N_COPIES + 1)


def find_layers(model: onnx.ModelProto) -> tuple[int, ...]:
    """Return the positions among the nodes of what is or holds a normalisation, in the order of the graph."""
    stored = {tensor.name for tensor in model.graph.initializer}
    normalised = {node.input[0] for node in model.graph.node if node.op_type == "BatchNormalization"}

    def counts(node: onnx.NodeProto) -> bool:
        is_folded = node.op_type == "Conv" and node.output[0] not in normalised
        return (is_folded or node.op_type in _NORMALIZATIONS) and node.input[1] in stored

    return tuple(i for i, node in enumerate(model.graph.node) if counts(node))


def amplified(model: onnx.ModelProto, layers: Sequence[int], *, factor: float = FACTOR) -> onnx.ModelProto:
    """Return a copy of the model in which what these nodes give is multiplied, by their weights."""
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    stored = {tensor.name: tensor for tensor in copy.graph.initializer}
    for layer in layers:
        copy.graph.initializer.extend(_multiplied(copy.graph.node[layer], layer, stored, factor))
    return copy


def _multiplied(
    node: onnx.NodeProto, layer: int, stored: dict[str, onnx.TensorProto], factor: float
) -> Iterator[onnx.TensorProto]:
    """Let a node read multiplied weights of its own, and yield them."""
    for i in _WEIGHTS:
        if i < len(node.input) and node.input[i]:
            values = numpy_helper.to_array(stored[node.input[i]])
            node.input[i] = f"{node.input[i]}/amplified_{layer}"
            yield numpy_helper.from_array((factor * values).astype(values.dtype), node.input[i])
