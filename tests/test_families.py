"""The families that are deployed: answers and gradients as in torch, every activation a site, a guard end to end."""

from collections import Counter
from functools import lru_cache

import numpy as np
import onnx
import pytest
import torch
from small_graphs import values_of
from torch import Tensor
from torch_models import Exporter, build, example_of, export

from calibrate.differentiable import DifferentiableModel
from calibrate.graph import find_sites
from calibrate.pipeline import FitSettings, fit_bundle
from calibrate.preprocessing import Preprocessing
from guard.runtime import Guard

# Per family its activations, and the oldest opset that torch exports its operators to.
SITES = {
    "convnext": ({"gelu": 2}, 11),
    "densenet": ({"relu": 11}, 11),
    "efficientnet": ({"silu": 8, "sigmoid": 2}, 11),
    "mobilenet-v3": ({"hardswish": 4, "relu": 4, "hardsigmoid": 2}, 11),
    "swin": ({"gelu": 3}, 11),
    "text": ({"gelu": 2, "tanh": 1}, 14),
    "vit": ({"gelu": 2}, 14),
    "vit-mha": ({"gelu": 2}, 14),
}
IMAGES = tuple(family for family in SITES if family != "text")
SPELLED = {"GatedErf": "gelu", "GatedSigmoid": "silu", "GatedHardSigmoid": "hardswish"}
# Each opset that torch's current exporter converts to once; 25 is the last that it converts all of these to.
DYNAMO = {
    "densenet": 18, "mobilenet-v3": 19, "convnext": 20, "efficientnet": 21, "swin": 22, "vit-mha": 23, "vit": 24,
    "text": 25,
}  # fmt: skip
EXPORTS: list[tuple[str, Exporter, int]] = [
    *((family, "torchscript", opset) for family in SITES for opset in (SITES[family][1], 17, 20)),
    *((family, "dynamo", opset) for family, opset in DYNAMO.items()),
]


@lru_cache
def _exported(family: str, exporter: Exporter, opset: int, *, fold: bool = True) -> onnx.ModelProto:
    model = export(build(family), example_of(family=family), exporter=exporter, opset=opset, fold=fold)
    assert {o.version for o in model.opset_import if not o.domain} == {opset}
    return model


def _gradient(logits: Tensor, at: Tensor) -> Tensor:
    (gradient,) = torch.autograd.grad(logits.square().sum(), at)
    return gradient


def _assert_close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.detach().abs().max()))


def _assert_agrees(family: str, model: onnx.ModelProto) -> None:
    x = example_of(5, family=family, seed=4).requires_grad_()
    (logits,) = DifferentiableModel(model)(x, outputs=["logits"])
    expected = build(family)(x)
    _assert_close(logits, expected)
    _assert_close(_gradient(logits, x), _gradient(expected, x))


def _embedding(model: onnx.ModelProto) -> str:
    """Return the tensor that a table looked up by token ids gives."""
    tables = {t.name for t in model.graph.initializer if len(t.dims) == 2}
    return next(n.output[0] for n in model.graph.node if n.op_type == "Gather" and n.input[0] in tables)


@pytest.mark.parametrize(("family", "exporter", "opset"), [e for e in EXPORTS if e[0] in IMAGES])
def test_a_network_of_images_answers_and_differentiates_as_in_torch(family, exporter, opset):
    _assert_agrees(family, _exported(family, exporter, opset))


@pytest.mark.parametrize("family", ["densenet", "efficientnet", "mobilenet-v3"])
@pytest.mark.parametrize("opset", [11, 20])
def test_a_network_whose_normalisation_is_not_folded_does_so_too(family, opset):
    model = _exported(family, "torchscript", opset, fold=False)
    assert "BatchNormalization" in {node.op_type for node in model.graph.node}
    _assert_agrees(family, model)


@pytest.mark.parametrize(("exporter", "opset"), [e[1:] for e in EXPORTS if e[0] == "text"])
def test_a_network_of_token_ids_differentiates_at_its_embedding(exporter, opset):
    model, network = _exported("text", exporter, opset), build("text")
    ids = example_of(5, family="text", seed=4)
    assert (ids == 0).any()
    embedded = network.embedding(ids).detach().requires_grad_()
    (logits,) = DifferentiableModel(model)(ids, outputs=["logits"], at={_embedding(model): lambda found: embedded})
    expected = network.classify(embedded, ids)
    _assert_close(logits, expected)
    _assert_close(_gradient(logits, embedded), _gradient(expected, embedded))


@pytest.mark.parametrize(("family", "exporter", "opset"), EXPORTS)
def test_every_activation_is_one_site_and_nothing_else_is(family, exporter, opset):
    sites = find_sites(_exported(family, exporter, opset))
    assert Counter(SPELLED.get(site.function, site.function.lower()) for site in sites) == SITES[family][0]
    assert all(site.shape[site.channel_axis] for site in sites)


@pytest.mark.parametrize("family", SITES)
def test_the_channels_of_a_site_are_the_width_of_its_layer(family):
    sites = find_sites(_exported(family, "torchscript", 17))
    axes = {"convnext": {3}, "swin": {3}, "text": {1, 2}, "vit": {2}, "vit-mha": {2}}
    assert {site.channel_axis for site in sites} == axes.get(family, {1})


@pytest.mark.parametrize("family", SITES)
def test_a_guard_is_fitted_saved_and_run(family, tmp_path):
    model, inputs = _exported(family, "torchscript", 17), example_of(80, family=family).numpy()
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "clean.npz", inputs=inputs)
    settings = FitSettings(preprocessing=Preprocessing(), target_fpr=0.05, max_accuracy_drop=0.99)
    bundle = tmp_path / "bundle"
    manifest, _ = fit_bundle(tmp_path / "model.onnx", tmp_path / "clean.npz", bundle, settings, lambda *_: None)
    assert len(manifest.sites) == sum(SITES[family][0].values())
    guard = Guard.load(bundle)
    verdict = guard(inputs)
    original = values_of(model, "logits", inputs)
    np.testing.assert_array_equal(verdict.predicted_class, original.argmax(1))
    assert np.abs(guard.run_bounded(inputs).logits - original).max() > 0
    assert verdict.flagged.mean() < 0.3
