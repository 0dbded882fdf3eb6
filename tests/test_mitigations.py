"""Mitigations: weights of an ONNX classifier trained in torch and written back, on backdoored digits."""

import numpy as np
import onnx
import pytest
import torch
from digits import TARGET
from image_problems import backdoored, images, with_trigger
from small_graphs import model_of, node
from torch import nn
from torch_models import build, example_of, export

from benchmarks.baselines import BASELINES, MITIGATIONS, OnnxClassifier
from benchmarks.baselines.bounded import fit_mmdf
from benchmarks.baselines.fine_tuning import FineTuning, fine_tune
from benchmarks.baselines.ibau import Unlearning, hypergradient, unlearn
from benchmarks.baselines.trainable import Trainable
from guard.errors import CalibrationError

pytestmark = pytest.mark.usefixtures("one_thread")
PLAIN = FineTuning(epochs=10, learning_rate=0.05, shift=0, flip=False, batch_size=64)


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
    inputs = example_of(3)
    network = Trainable(model, "logits", inputs.numpy())
    written = OnnxClassifier(network.written(), "logits").logits(inputs.numpy())
    before = OnnxClassifier(model, "logits").logits(inputs.numpy())
    np.testing.assert_allclose(written, before, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(network(inputs).detach().numpy(), before, rtol=1e-4, atol=1e-5)


def test_gradients_of_weights_are_those_of_torch():
    module = build("mlp")
    model = export(module, example_of(), exporter="torchscript", opset=17)
    network = Trainable(model, "logits", example_of(4).numpy())
    for logits in (network(example_of(4)), module(example_of(4))):
        logits.square().sum().backward()
    found = sorted(float(w.grad.norm()) for w in network.weights.values())
    assert found == pytest.approx(sorted(float(p.grad.norm()) for p in module.parameters()), rel=1e-4)


def test_what_training_changes_is_written_back_statistics_included():
    model = export(build("vgg"), example_of(), exporter="torchscript", opset=17)
    network, inputs = Trainable(model, "logits", example_of(4).numpy()), example_of(3)
    network(example_of(8, seed=2) ** 2, training=True)
    with torch.no_grad():
        for weight in network.weights.values():
            weight.mul_(0.9)
    after = OnnxClassifier(network.written(), "logits").logits(inputs.numpy())
    assert np.abs(after - OnnxClassifier(model, "logits").logits(inputs.numpy())).max() > 1e-3
    np.testing.assert_allclose(network(inputs).detach().numpy(), after, rtol=1e-4, atol=1e-5)


def test_a_batch_norm_put_back_normalises_by_the_batch_in_training():
    module = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 14 * 14, 10))
    model = export(module.eval(), example_of(), exporter="torchscript", opset=17)
    network = Trainable(model, "logits", example_of(64).numpy())
    inputs = example_of(8, seed=3)
    with torch.no_grad():  # the scale that training would have found, had the clean inputs been the training data
        module[1].running_mean.copy_(module[0](example_of(64)).mean(dim=(0, 2, 3)))
        module[1].running_var.copy_(module[0](example_of(64)).var(dim=(0, 2, 3), correction=0))
        scale = (module[1].running_var + 1e-5).sqrt()
        module[1].weight.copy_(scale)
        module[1].bias.copy_(module[1].running_mean)
    np.testing.assert_allclose(
        network(inputs, training=True).detach().numpy(), module.train()(inputs).detach().numpy(), rtol=1e-3, atol=1e-3
    )


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
    clean, labels = (a[:400] for a in rows(digits.clean, "inputs", "labels"))
    accuracy, success, _ = rates(fine_tune(classifier, clean, labels, PLAIN), digits)
    assert accuracy > 0.95
    assert success < rates(classifier.model, digits)[1] - 0.05


def test_unlearning_removes_a_backdoor(digits, classifier):
    clean, labels = (a[:200] for a in rows(digits.clean, "inputs", "labels"))
    settings = Unlearning(learning_rate=3e-4, perturbation_step=3, batch_size=25)
    accuracy, success, robust = rates(unlearn(classifier, clean, labels, settings), digits)
    assert accuracy > 0.6
    assert success < 0.3
    assert robust > 0.4


def test_the_hypergradient_is_that_of_dense_derivatives():
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(3, 2, generator=generator)
    model = model_of(node("MatMul", ["x", "w"], ["y"]), y=("N", 2), weights={"w": weight.numpy()})
    inputs, labels = torch.randn(6, 3, generator=generator), torch.arange(6) % 2
    carries, d = torch.tensor([1.0, 0, 0, 1, 0, 0])[:, None], torch.randn(1, 3, generator=generator)
    network = Trainable(model, "y", inputs.numpy())
    _, (found,) = hypergradient(network, d.requires_grad_(), (inputs, labels), (inputs, labels, carries))

    def outer(d, w):
        return nn.functional.cross_entropy((inputs + carries * d) @ w, labels)

    def step(d, w):
        loss = 0.001 * d.square().sum() - nn.functional.cross_entropy((inputs + d) @ w, labels)
        return d - 0.1 * torch.autograd.grad(loss, d, create_graph=True)[0]

    by_d, direct = torch.autograd.functional.jacobian(outer, (d, weight))
    of_d, of_w = torch.autograd.functional.jacobian(step, (d, weight))
    powers = sum(torch.linalg.matrix_power(of_d.reshape(3, 3).T, k) for k in range(5))
    indirect = of_w.reshape(3, 6).T @ powers @ by_d.reshape(3)
    torch.testing.assert_close(found, direct + indirect.reshape(3, 2))


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


@pytest.mark.parametrize("name", ["unit", "mmac"])
def test_published_bounds_take_a_triggers_power(name):
    inputs, labels = images(40), np.arange(40) % 2 + 1
    inputs[np.arange(40), labels] += 0.4
    classifier = backdoored()
    bounded = classifier.variant(MITIGATIONS[name](classifier, inputs, labels))
    np.testing.assert_array_equal(bounded.predict(inputs), labels)
    assert (classifier.predict(with_trigger(inputs)) == 0).all()
    assert (bounded.predict(with_trigger(inputs)) != 0).all()


def test_mmdf_scores_the_margin_that_the_bounds_cost():
    inputs, labels = images(40), np.arange(40) % 2 + 1
    inputs[np.arange(40), labels] += 0.4
    score = fit_mmdf(backdoored(), inputs[:30], labels[:30], method="few-shot")
    assert score(with_trigger(inputs[30:])).min() > score(inputs[30:]).max()
    assert BASELINES["mmdf"].fit is fit_mmdf


def test_unlearning_with_no_rounds_changes_nothing(classifier, digits):
    inputs, labels = (a[:8] for a in rows(digits.clean, "inputs", "labels"))
    same = unlearn(classifier, inputs, labels, Unlearning(rounds=0))
    found = OnnxClassifier(same, "logits").logits(inputs)
    np.testing.assert_allclose(found, classifier.logits(inputs), rtol=1e-4, atol=1e-5)
