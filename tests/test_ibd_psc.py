"""IBD-PSC: the last layers amplified."""

import numpy as np
import pytest
import torch
from image_problems import SHAPE, backdoored, classifier_of, images
from small_graphs import model_of, node
from torch_models import build, example_of, export

from benchmarks.baselines import BASELINES, OnnxClassifier, score_and_count
from benchmarks.baselines.ibd_psc import amplified, find_layers, first_count
from guard.errors import CalibrationError


def amplify_batch_norms(module, last):
    norms = [m for m in module.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    with torch.no_grad():
        for norm in norms[-last:]:
            norm.weight *= 1.5
            norm.bias *= 1.5
    return len(norms)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("last", [1, 3])
def test_amplifying_what_is_folded_is_amplifying_the_batch_norm(fold, last):
    module = build("vgg")
    model = export(module, example_of(), exporter="torchscript", opset=17, fold=fold)
    found = OnnxClassifier(amplified(model, find_layers(model)[-last:]), "logits").logits(example_of(4).numpy())
    assert amplify_batch_norms(module, last) == len(find_layers(model))
    np.testing.assert_allclose(found, module(example_of(4)).detach().numpy(), rtol=1e-4, atol=1e-5)


def test_amplifying_leaves_the_model_as_it_is():
    model = export(build("vgg"), example_of(), exporter="torchscript", opset=17)
    before = model.SerializeToString()
    amplified(model, find_layers(model))
    assert model.SerializeToString() == before


def chain(*biases: float) -> OnnxClassifier:
    """Return a classifier by one pixel: class 1 where, after layers x -> x + bias, it exceeds the sum of biases."""
    nodes, weights, x = [], {"axes": np.array([2, 3])}, "x"
    for i, bias in enumerate(biases):
        kernel = np.zeros((3, 3, 1, 1))
        kernel[range(3), range(3)] = 1.0
        weights |= {f"w{i}": kernel, f"b{i}": np.full(3, bias)}
        nodes += [node("Conv", [x, f"w{i}", f"b{i}"], [f"c{i}"]), node("Relu", [f"c{i}"], [f"r{i}"])]
        x = f"r{i}"
    weights |= {"head": np.array([[0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]), "offset": np.array([[0.0, -2.0]])}
    nodes += [
        node("GlobalAveragePool", [x], ["p"]),
        node("Flatten", ["p"], ["f"]),
        node("MatMul", ["f", "head"], ["m"]),
    ]
    return classifier_of(*nodes, node("Add", ["m", "offset"], ["y"]), weights=weights, n_classes=2)


def test_the_first_copy_is_the_one_with_which_the_error_passes_the_rate():
    # A mean of .25 (class 0: .25 < 2) becomes .25 x 1.5^k with k layers amplified: past 2 with k = 6 of 7.
    classifier, inputs = chain(*[0.0] * 7), np.full((4, *SHAPE[1:]), 0.25, np.float32)
    layers, labels = find_layers(classifier.model), np.zeros(4, np.int64)
    assert len(layers) == 7
    assert first_count(classifier, layers, inputs, labels) == 6


def test_where_the_error_never_passes_the_copies_are_those_with_most_layers():
    classifier, inputs = chain(*[0.0] * 7), np.full((4, *SHAPE[1:]), 0.01, np.float32)
    labels = np.zeros(4, np.int64)
    assert first_count(classifier, find_layers(classifier.model), inputs, labels) == 3
    detector = BASELINES["ibd-psc"]
    assert score_and_count(detector, detector.fit(classifier, inputs, labels), classifier, inputs)[1] == 6


def test_the_score_is_the_mean_probability_of_the_original_class():
    classifier, inputs = chain(*[0.0] * 7), np.full((4, *SHAPE[1:]), 0.01, np.float32)
    found = BASELINES["ibd-psc"].fit(classifier, inputs, np.zeros(4, np.int64))(inputs)
    logits = 0.01 * 1.5 ** np.arange(3, 8) - 2
    np.testing.assert_allclose(found, np.mean(1 / (1 + np.exp(logits))), rtol=1e-5)


def test_past_all_layers_there_are_no_more_copies():
    classifier, inputs = chain(*[0.0] * 7), np.full((4, *SHAPE[1:]), 0.25, np.float32)
    detector = BASELINES["ibd-psc"]
    scorer = detector.fit(classifier, inputs, np.zeros(4, np.int64))
    assert score_and_count(detector, scorer, classifier, inputs)[1] == 3  # the original, 6 and 7 layers


def test_layer_normalisations_count_as_layers():
    weights = {"s": np.ones(3), "b": np.zeros(3)}
    model = model_of(node("LayerNormalization", ["x", "s", "b"], ["y"]), weights=weights)
    assert find_layers(model) == (0,)


def test_a_model_without_layers_to_amplify_is_refused():
    with pytest.raises(CalibrationError, match="nothing to amplify"):
        BASELINES["ibd-psc"].fit(backdoored(), images(), np.ones(12, np.int64))
