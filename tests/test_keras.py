"""Keras models as Keras exports them: channels last, a Transpose around every convolution, casts everywhere."""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from calibrate.differentiable import DifferentiableModel
from calibrate.graph import Classifier, find_sites, read_classifier
from calibrate.pipeline import FitSettings, fit_bundle
from calibrate.preprocessing import Preprocessing
from guard.runtime import Guard

IMAGES = np.random.default_rng(0).random((70, 12, 12, 3), dtype=np.float32)
N_TOKENS, VOCABULARY = 8, 20
SPELLED = {"GatedErf": "Gelu", "GatedTanh": "Gelu"}
SITES = {"convnet": ["Relu", "GatedSigmoid", "Gelu"], "residual": ["Relu", "Relu", "Tanh"], "text": ["Gelu", "Relu"]}


pytestmark = pytest.mark.filterwarnings("ignore")  # what Keras and torch's exporter say is not ours to mend


@pytest.fixture(scope="module")
def keras(tmp_path_factory) -> Iterator[ModuleType]:
    """Import Keras on torch, with its settings in a folder of their own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KERAS_BACKEND", "torch")
        patch.setenv("KERAS_HOME", str(tmp_path_factory.mktemp("keras")))
        yield pytest.importorskip("keras")


def _convnet(keras):
    layers = keras.layers
    return keras.Sequential([
        keras.Input((12, 12, 3)), layers.Conv2D(6, 3, padding="same"), layers.BatchNormalization(), layers.ReLU(),
        layers.MaxPooling2D(3, 2, padding="same"), layers.SeparableConv2D(8, 3, strides=2, activation="swish"),
        layers.GlobalAveragePooling2D(), layers.Dense(8, activation="gelu"), layers.Dropout(0.2),
        layers.Dense(5, activation="softmax"),
    ])  # fmt: skip


def _residual(keras):
    layers = keras.layers
    inputs = keras.Input((12, 12, 3))
    x = layers.Conv2D(4, 3, padding="same", activation="relu")(inputs)
    y = layers.BatchNormalization()(layers.Conv2D(4, 3, padding="same")(x))
    x = layers.Activation("relu")(layers.Add()([x, y]))
    x = layers.Dense(6, activation="tanh")(layers.Flatten()(layers.AveragePooling2D(2)(x)))
    return keras.Model(inputs, layers.Dense(5)(x))


def _text(keras):
    layers = keras.layers
    ids = keras.Input((N_TOKENS,), dtype="int32")
    x = layers.Embedding(VOCABULARY, 8)(ids)
    x = x + layers.MultiHeadAttention(2, 4)(x, x)  # Keras 3.15 cannot export its LayerNormalization
    x = layers.GlobalAveragePooling1D()(layers.Dense(8, activation="gelu")(x))
    return keras.Model(ids, layers.Dense(5)(layers.Dense(6, activation="relu")(x)))


NETWORKS = {"convnet": _convnet, "residual": _residual, "text": _text}


def _exported(keras, folder: Path, name: str, opset: int):
    """Return a network with weights, and what its export reads as."""
    keras.utils.set_random_seed(0)
    network = NETWORKS[name](keras)
    network(_inputs(name)[:2])
    network.export(folder / "model.onnx", format="onnx", verbose=False, opset_version=opset)
    return network, read_classifier(folder / "model.onnx")


def _inputs(name: str) -> np.ndarray:
    if name != "text":
        return IMAGES
    return np.random.default_rng(0).integers(0, VOCABULARY, (len(IMAGES), N_TOKENS), dtype=np.int32)


def _answers(classifier: Classifier, inputs: torch.Tensor) -> torch.Tensor:
    return DifferentiableModel(classifier.model)(inputs, outputs=[classifier.output.name])[0]


@pytest.mark.parametrize(("name", "opset"), [(n, o) for n in NETWORKS for o in (14 if n == "text" else 11, 15, 20)])
def test_a_network_answers_as_in_keras_and_has_its_activations(keras, tmp_path, name, opset):
    network, classifier = _exported(keras, tmp_path, name, opset)
    assert {o.version for o in classifier.model.opset_import if not o.domain} == {opset}
    expected = network(_inputs(name)).detach()
    torch.testing.assert_close(_answers(classifier, torch.from_numpy(_inputs(name))), expected, rtol=1e-4, atol=1e-5)
    found = Counter(SPELLED.get(site.function, site.function) for site in find_sites(classifier.model))
    assert found == Counter(SITES[name])


@pytest.mark.parametrize("name", ["convnet", "residual"])
def test_a_network_differentiates_as_in_keras(keras, tmp_path, name):
    network, classifier = _exported(keras, tmp_path, name, 17)
    x = torch.from_numpy(IMAGES[:4]).requires_grad_()
    found, expected = (torch.autograd.grad(y.square().sum(), x)[0] for y in (_answers(classifier, x), network(x)))
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4 * float(expected.abs().max()))


def test_the_channels_of_images_are_last(keras, tmp_path):
    _, classifier = _exported(keras, tmp_path, "convnet", 17)
    places = [(site.channel_axis, site.shape[site.channel_axis]) for site in find_sites(classifier.model)]
    assert places == [(3, 6), (3, 8), (1, 8)]


@pytest.mark.parametrize("name", NETWORKS)
def test_a_guard_is_fitted_saved_and_run(keras, tmp_path, name):
    network, _ = _exported(keras, tmp_path, name, 17)
    np.savez(tmp_path / "clean.npz", inputs=_inputs(name))
    settings = FitSettings(preprocessing=Preprocessing(layout="nhwc"), target_fpr=0.05, max_accuracy_drop=0.99)
    manifest, _ = fit_bundle(
        tmp_path / "model.onnx", tmp_path / "clean.npz", tmp_path / "bundle", settings, lambda *_: None
    )
    assert len(manifest.sites) == len(SITES[name])
    assert (manifest.logits is not None, manifest.output_kind == "probabilities") == (True, name == "convnet")
    verdict = Guard.load(tmp_path / "bundle")(_inputs(name))
    np.testing.assert_array_equal(verdict.predicted_class, network(_inputs(name)).detach().numpy().argmax(1))
