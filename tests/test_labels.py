"""Labels of another model's classes, or of one class, are told from good ones."""

import numpy as np
import onnx
import pytest
from calibrate_runs import check_refused, fit_with, save_data
from small_graphs import model_of, node

from calibrate.labels import check_agreement, check_several_classes
from guard.errors import CalibrationError, InputError

CLASSES = np.tile(np.arange(10), 20)


def test_labels_that_the_model_mostly_agrees_with_pass():
    check_agreement(CLASSES, np.where(np.arange(200) % 5 == 0, 0, CLASSES))


def test_a_class_order_that_is_not_the_models_is_refused_with_the_agreement():
    with pytest.raises(
        InputError, match=r"labels of 0.0% of 200 clean samples.*classes have the model's order.*--mean"
    ):
        check_agreement((CLASSES + 1) % 10, CLASSES)


def test_a_model_that_answers_one_class_whatever_it_sees_is_refused():
    with pytest.raises(
        InputError,
        match=r"10.0% of 200 .* with shuffled labels \(10.0%, or up to 16.4% by luck\)",
    ):
        check_agreement(CLASSES, np.full(200, 3))


@pytest.mark.parametrize("seed", range(20))
def test_labels_that_were_shuffled_are_refused_whatever_their_luck(seed):
    with pytest.raises(InputError, match="no more than with shuffled labels"):
        check_agreement(np.random.default_rng(seed).permutation(CLASSES), CLASSES)


def test_labels_of_which_one_in_five_is_right_pass_with_their_agreement():
    assert check_agreement(np.where(np.arange(200) // 10 % 5 == 0, CLASSES, (CLASSES + 1) % 10), CLASSES) == 0.2


@pytest.mark.parametrize("n", [1, 9])
def test_too_few_samples_to_tell_pass(n):
    check_agreement(CLASSES[:n], CLASSES[:n] + 1)


def test_one_class_that_the_model_knows_is_no_disagreement():
    check_agreement(np.zeros(50, dtype=np.int64), np.zeros(50, dtype=np.int64))


def test_one_class_is_refused_where_several_are_wanted():
    check_several_classes(CLASSES, wanted_by="--method unit")
    with pytest.raises(
        CalibrationError, match="all 5 clean samples are of class 7, but --method unit compares classes"
    ):
        check_several_classes(np.full(5, 7), wanted_by="--method unit")


def _arrays(digits):
    with np.load(digits.clean) as arrays:
        return arrays["inputs"], arrays["labels"]


def test_a_fit_on_labels_of_another_order_is_refused(good_fit, digits, tmp_path, capfd):
    inputs, labels = _arrays(digits)
    data = save_data(tmp_path / "other.npz", inputs=inputs, labels=(labels + 3) % 10)
    check_refused(fit_with({**good_fit, "data": data}), capfd, "no more than with shuffled labels", "model's order")


def test_a_fit_on_one_class_is_refused_by_methods_that_need_several_only(good_fit, digits, tmp_path, capfd):
    inputs, labels = _arrays(digits)
    data = save_data(
        tmp_path / "ones.npz", inputs=np.repeat(inputs[labels == 1], 6, axis=0), labels=np.ones(6 * (labels == 1).sum())
    )
    paths = {**good_fit, "data": data}
    check_refused(fit_with(paths, "--method", "unit"), capfd, "are of class 1, but --method unit compares classes")
    assert fit_with(paths, "--method", "sigma") == 0


def _always_three(path):
    """Save a classifier of digits that answers class 3 whatever it sees."""
    nodes = [node("Relu", ["x"], ["h"]), node("Flatten", ["h"], ["f"]), node("Gemm", ["f", "w", "b"], ["y"])]
    weights = {"w": np.zeros((64, 10)), "b": np.eye(10)[3]}
    onnx.save(model_of(*nodes, x=("N", 1, 8, 8), y=("N", 10), weights=weights), path)
    return path


def test_predictions_of_one_class_are_no_labels_to_compare_classes_by(good_fit, digits, tmp_path, capfd):
    data = save_data(tmp_path / "plain.npz", inputs=_arrays(digits)[0])
    paths = {**good_fit, "data": data, "model": _always_three(tmp_path / "three.onnx")}
    check_refused(fit_with(paths, "--method", "unit"), capfd, "samples are of class 3, but --method unit compares")


def test_labels_that_the_model_mostly_disagrees_with_are_warned_of(good_fit, digits, tmp_path, capfd):
    inputs, labels = _arrays(digits)
    wrong = np.where(np.arange(len(labels)) % 10 < 7, (labels + 1) % 10, labels)
    data = save_data(tmp_path / "mostly.npz", inputs=inputs, labels=wrong)
    assert fit_with({**good_fit, "data": data}) == 0
    assert "warning: The model agrees with the labels of only" in capfd.readouterr().err
