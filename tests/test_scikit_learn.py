"""scikit-learn's classifiers as its converter writes them: a label and probabilities, and nodes of ai.onnx.ml."""

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from skl2onnx import to_onnx
from sklearn.base import ClassifierMixin
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.neural_network import MLPClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from calibrate.differentiable import DifferentiableModel
from calibrate.graph import Classifier, find_sites, read_classifier
from calibrate.pipeline import FitSettings, fit_bundle
from calibrate.preprocessing import Preprocessing
from calibrate.report_checks import warnings_of
from guard.bundle import load_bundle
from guard.errors import CalibrationError, InputError
from guard.runtime import Guard

X = np.random.default_rng(0).normal(size=(150, 6)).astype(np.float32)
LABELS = (X[:, :3].argmax(axis=1)).astype(np.int64)


def _mlp(activation: str = "relu") -> MLPClassifier:
    return MLPClassifier((12, 8), activation=activation, max_iter=60, random_state=0)


def _saved(folder: Path, classifier: ClassifierMixin, labels: np.ndarray = LABELS, *, zipmap: bool = False) -> Path:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        classifier.fit(X, labels)
    onnx.save(to_onnx(classifier, X[:1], options={"zipmap": zipmap}), folder / "model.onnx")
    return folder / "model.onnx"


def _logits(classifier: Classifier, inputs: np.ndarray) -> np.ndarray:
    (logits,) = DifferentiableModel(classifier.model)(torch.from_numpy(inputs), outputs=[classifier.output.name])
    return logits.numpy()


@pytest.mark.parametrize(
    ("activation", "function"), [("relu", "Relu"), ("tanh", "Tanh"), ("logistic", "Sigmoid"), ("identity", None)]
)
def test_a_multilayer_perceptron_is_read_with_its_probabilities_alone(tmp_path, activation, function):
    network = _mlp(activation)
    classifier = read_classifier(_saved(tmp_path, network))
    assert (classifier.output.name, classifier.dropped) == ("probabilities", ("label",))
    assert (classifier.ends_in_softmax, classifier.n_classes) == (True, 3)
    assert {node.domain for node in classifier.model.graph.node} == {""}
    np.testing.assert_allclose(_logits(classifier, X), network.predict_proba(X), atol=1e-5)
    if function is None:
        with pytest.raises(CalibrationError, match="no activation to bound"):
            find_sites(classifier.model)
    else:
        assert [site.function for site in find_sites(classifier.model)] == [function] * 2


def test_the_sigmoid_that_two_classes_end_in_is_no_site(tmp_path):
    network = _mlp()
    classifier = read_classifier(_saved(tmp_path, network, LABELS % 2))
    assert [site.function for site in find_sites(classifier.model)] == ["Relu", "Relu"]
    np.testing.assert_allclose(_logits(classifier, X), network.predict_proba(X), atol=1e-5)


def test_labels_of_text_and_a_scaler_in_front_change_nothing(tmp_path):
    network = make_pipeline(StandardScaler(), _mlp())
    classifier = read_classifier(_saved(tmp_path, network, np.array(list("abc"))[LABELS]))
    assert "Scaler" in {node.op_type for node in classifier.model.graph.node}
    assert classifier.dropped == ("label",)
    np.testing.assert_allclose(_logits(classifier, X), network.predict_proba(X), atol=1e-5)


@pytest.mark.parametrize("labels", [LABELS, LABELS % 2])
def test_a_linear_model_is_read_and_differentiated_but_has_nothing_to_bound(tmp_path, labels):
    network = LogisticRegression()
    classifier = read_classifier(_saved(tmp_path, network, labels))
    np.testing.assert_allclose(_logits(classifier, X), network.predict_proba(X), atol=1e-5)
    with pytest.raises(CalibrationError, match="no activation to bound"):
        find_sites(classifier.model)


def test_a_forest_has_no_gradient_and_nothing_to_bound(tmp_path):
    classifier = read_classifier(_saved(tmp_path, RandomForestClassifier(3)))
    with pytest.raises(CalibrationError, match="a tree ensemble is a step function"):
        DifferentiableModel(classifier.model)
    with pytest.raises(CalibrationError, match="no activation to bound"):
        find_sites(classifier.model)


def test_probabilities_in_a_sequence_of_maps_are_refused_with_the_option_that_helps(tmp_path):
    with pytest.raises(InputError, match=r"options=\{'zipmap': False\}"):
        read_classifier(_saved(tmp_path, _mlp(), zipmap=True))


@pytest.mark.parametrize("n_classes", [2, 3])
def test_a_guard_is_fitted_and_says_that_the_label_is_dropped(tmp_path, n_classes):
    network = make_pipeline(StandardScaler(), _mlp())
    model = _saved(tmp_path, network, LABELS % n_classes)
    np.savez(tmp_path / "clean.npz", inputs=X, labels=LABELS % n_classes)
    settings = FitSettings(preprocessing=Preprocessing(), target_fpr=0.05, max_accuracy_drop=0.5)
    manifest, findings = fit_bundle(model, tmp_path / "clean.npz", tmp_path / "bundle", settings, lambda *_: None)
    assert "output 'label' is dropped" in next(warnings_of(manifest, findings))
    bundle = load_bundle(tmp_path / "bundle")
    for part in (bundle.original, bundle.bounded):
        assert "label" not in {o.name for o in onnx.load_model_from_string(part).graph.output}
    verdict = Guard.from_bundle(bundle)(X)
    np.testing.assert_array_equal(verdict.predicted_class, network.predict(X))
