"""Mitigations: weights of an ONNX classifier trained in torch and written back, on backdoored digits."""

import numpy as np
import onnx
import pytest
import torch
from digits import TARGET
from image_problems import backdoored, images, with_trigger
from torch import nn
from torch_models import build, example_of, export

from benchmarks.baselines import BASELINES, OnnxClassifier
from benchmarks.baselines.bounded import fit_mmdf
from benchmarks.baselines.fine_tuning import FineTuning, fine_tune
from benchmarks.baselines.ibau import Unlearning, unlearn
from benchmarks.baselines.trainable import Trainable
from guard.errors import CalibrationError

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = FineTuning(epochs=15, learning_rate=0.01, shift=0, flip=False, batch_size=64)


def rows(path, *names):
    with np.load(path) as arrays:
        return tuple(arrays[name] for name in names)


@pytest.fixture(scope="module")
def classifier(digits):
    return OnnxClassifier(onnx.load(digits.model), "logits", threads=1)


def rates(model, digits):
    """Return clean accuracy, attack success rate and robust accuracy."""
    classifier = OnnxClassifier(model, "logits", threads=1)
    inputs, labels = rows(digits.test, "inputs", "labels")
    triggered, true = rows(digits.triggered, "inputs", "labels")
    answers = classifier.predict(triggered)[true != TARGET]
    right = (classifier.predict(inputs) == labels).mean()
    return right, (answers == TARGET).mean(), (answers == true[true != TARGET]).mean()


@pytest.mark.parametrize("fold", [True, False])
def test_weights_written_back_unchanged_are_the_model(fold):
    model = export(build("resnet"), example_of(), exporter="torchscript", opset=17, fold=fold)
    network = Trainable(model, "logits")
    inputs = example_of(3)
    written = OnnxClassifier(network.written(), "logits").logits(inputs.numpy())
    np.testing.assert_array_equal(written, OnnxClassifier(model, "logits").logits(inputs.numpy()))
    np.testing.assert_allclose(network(inputs).detach().numpy(), written, rtol=1e-3, atol=1e-4)


def test_gradients_of_weights_are_those_of_torch():
    module = build("mlp")
    network = Trainable(export(module, example_of(), exporter="torchscript", opset=17), "logits")
    for logits in (network(example_of(4)), module(example_of(4))):
        logits.square().sum().backward()
    found = sorted(float(w.grad.norm()) for w in network.weights.values())
    assert found == pytest.approx(sorted(float(p.grad.norm()) for p in module.parameters()), rel=1e-4)


def test_a_step_on_the_weights_is_written_back():
    network = Trainable(export(build("mlp"), example_of(), exporter="torchscript", opset=17), "logits")
    with torch.no_grad():
        for weight in network.weights.values():
            weight.mul_(0.5)
    after = OnnxClassifier(network.written(), "logits").logits(example_of(3).numpy())
    np.testing.assert_allclose(network(example_of(3)).detach().numpy(), after, rtol=1e-3, atol=1e-5)


def test_fine_tuning_does_what_torch_does_with_the_same_steps():
    module = build("mlp")
    model = export(module, example_of(), exporter="torchscript", opset=17)
    inputs, labels = example_of(8), torch.arange(8)
    settings = FineTuning(epochs=2, learning_rate=0.1, batch_size=8, shift=0, flip=False)
    tuned = fine_tune(OnnxClassifier(model, "logits"), inputs.numpy(), labels.numpy(), settings)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    for rate in (0.1, 0.05):  # half of a cosine's way
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        nn.functional.cross_entropy(module(inputs), labels).backward()
        optimizer.step()
    found = OnnxClassifier(tuned, "logits").logits(inputs.numpy())
    np.testing.assert_allclose(found, module(inputs).detach().numpy(), rtol=1e-3, atol=1e-4)


def test_the_backdoor_works_before_mitigation(digits, classifier):
    accuracy, success, _ = rates(classifier.model, digits)
    assert accuracy > 0.9
    assert success > 0.95


def test_fine_tuning_reduces_the_success_of_a_backdoor(digits, classifier):
    accuracy, success, _ = rates(fine_tune(classifier, *rows(digits.clean, "inputs", "labels"), PLAIN), digits)
    assert accuracy > 0.9
    assert success < 0.9


def test_unlearning_removes_a_backdoor(digits, classifier):
    accuracy, success, robust = rates(unlearn(classifier, *rows(digits.clean, "inputs", "labels")), digits)
    assert accuracy > 0.85
    assert success < 0.3
    assert robust > 0.6


@pytest.mark.parametrize("mend", [fine_tune, unlearn])
def test_a_loss_that_is_no_number_is_refused(mend, classifier):
    inputs, labels = np.full((4, 1, 8, 8), np.nan, np.float32), np.zeros(4, np.int64)
    with pytest.raises(CalibrationError, match="the loss is nan"):
        mend(classifier, inputs, labels)


def test_shifted_images_keep_their_form_and_the_original_is_untouched(classifier, digits):
    inputs, labels = (a[:8] for a in rows(digits.clean, "inputs", "labels"))
    before = classifier.model.SerializeToString()
    tuned = fine_tune(classifier, inputs, labels, FineTuning(epochs=1, shift=2))
    assert OnnxClassifier(tuned, "logits").logits(inputs).shape == (8, 10)
    assert classifier.model.SerializeToString() == before


def test_mmdf_scores_the_margin_that_the_bounds_cost():
    inputs, labels = images(40), np.arange(40) % 2 + 1
    inputs[np.arange(40), labels] += 0.4
    score = fit_mmdf(backdoored(), inputs[:30], labels[:30], method="few-shot")
    assert score(with_trigger(inputs[30:])).min() > score(inputs[30:]).max()
    assert BASELINES["mmdf"].fit is fit_mmdf


def test_unlearning_with_no_rounds_changes_nothing(classifier, digits):
    inputs, labels = (a[:8] for a in rows(digits.clean, "inputs", "labels"))
    same = unlearn(classifier, inputs, labels, Unlearning(rounds=0))
    np.testing.assert_array_equal(OnnxClassifier(same, "logits").logits(inputs), classifier.logits(inputs))
