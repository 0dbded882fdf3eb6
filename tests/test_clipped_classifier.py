"""The clipped classifier: what clipping leaves alone, and gradients whatever the size of the batches."""

import numpy as np
import onnxruntime as ort
import pytest
import torch
from texts import text_classifier, texts, votes
from unit_problems import two_classes, with_fixed_batch

from calibrate.bounds.clipped_classifier import ClippedClassifier, LabelledInputs
from calibrate.sites import BoundsProblem, Site

SITE = Site(tensor="hidden", function="Relu", shape=(None, 3), channel_axis=1)


def _clipped(problem: BoundsProblem, upper: dict[str, float]) -> tuple[np.ndarray, np.ndarray]:
    """Return the original's logits from onnxruntime and the clipped ones."""
    session = ort.InferenceSession(problem.model.SerializeToString(), providers=["CPUExecutionProvider"])
    (expected,) = session.run(["logits"], {"x": problem.inputs})
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=8)
    bounds = {site: torch.tensor(bound) for site, bound in upper.items()}
    return expected, classifier.logits(torch.from_numpy(problem.inputs), bounds).numpy()


def test_infinite_bounds_leave_the_original():
    expected, clipped = _clipped(two_classes(), {"a": np.inf})
    np.testing.assert_allclose(clipped, expected, atol=1e-5)


def test_bounds_that_clip_nothing_change_no_bit():
    problem = two_classes()
    _, clipped = _clipped(problem, {"a": float(problem.inputs.max())})
    _, original = _clipped(problem, {})
    assert (clipped == original).all()


def _loss_and_gradient(problem: BoundsProblem, *, batch_size: int) -> tuple[float, torch.Tensor]:
    bound = torch.full((1, 2, 3, 3), 0.7, requires_grad=True)
    classifier = ClippedClassifier(problem.model, "logits", problem.sites, batch_size=batch_size)
    loss = classifier.add_cross_entropy_gradients(LabelledInputs.of(problem.inputs, problem.labels), {"a": bound})
    return loss, bound.grad


def test_gradients_of_mini_batches_sum_to_that_of_the_full_batch():
    (_, full), (_, parts) = (_loss_and_gradient(two_classes(), batch_size=size) for size in (80, 7))
    assert full.abs().min() > 1e-4
    torch.testing.assert_close(parts, full, rtol=0, atol=1e-6)


@pytest.mark.parametrize("n", [1, 7, 80, 100])
def test_a_fixed_batch_changes_neither_loss_nor_gradient_nor_accuracy(n):
    free = two_classes()
    fixed = with_fixed_batch(free, n)
    (free_loss, free_gradient), (loss, gradient) = (_loss_and_gradient(p, batch_size=80) for p in (free, fixed))
    assert loss == pytest.approx(free_loss, abs=1e-6)
    torch.testing.assert_close(gradient, free_gradient, rtol=0, atol=1e-6)
    data = LabelledInputs.of(free.inputs, free.labels)
    accuracies = [
        ClippedClassifier(p.model, "logits", p.sites, batch_size=80).accuracy(data, {"a": torch.tensor(0.7)})
        for p in (free, fixed)
    ]
    assert accuracies[0] == accuracies[1] < 1


def test_any_number_of_inputs_gives_as_many_logits_at_a_fixed_batch():
    free = two_classes(n=9)
    logits = [
        ClippedClassifier(p.model, "logits", p.sites, batch_size=3).logits(torch.from_numpy(free.inputs), {})
        for p in (free, with_fixed_batch(free, 4))
    ]
    assert logits[1].shape == (9, 2)
    torch.testing.assert_close(logits[1], logits[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [4, "N"])
def test_several_inputs_are_clipped_by_name(batch):
    inputs = texts(9, triggered=True)
    classifier = ClippedClassifier(text_classifier(ids_batch=batch), "logits", [SITE], batch_size=2)
    data = LabelledInputs.of(inputs, np.zeros(9, dtype=np.int64))
    assert classifier.logits(data.inputs, {}).tolist() == votes(inputs).tolist()
    assert classifier.logits(data.inputs, {"hidden": torch.tensor(2.0)}).tolist() == votes(inputs).clip(max=2).tolist()
    assert classifier.accuracy(data, {}) == 1
