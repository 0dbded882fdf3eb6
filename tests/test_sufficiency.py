"""Too few samples are refused with a way that works, and that way works."""

import re
import shlex

import numpy as np
import pytest
from calibrate_runs import check_refused, fit_with, save_data

from calibrate.bounds import METHODS, NEEDS
from calibrate.data import part_sizes
from calibrate.draft import FitSettings
from calibrate.preprocessing import Preprocessing
from calibrate.sufficiency import check_enough
from guard.bundle import load_bundle
from guard.conformal import required_for_certificate, required_samples
from guard.errors import CalibrationError


def _message(n, **settings):
    with pytest.raises(CalibrationError) as caught:
        check_enough(n, FitSettings(preprocessing=Preprocessing(), **settings))
    return str(caught.value)


def _few(digits, tmp_path, n):
    with np.load(digits.clean) as arrays:
        return save_data(tmp_path / f"{n}.npz", inputs=arrays["inputs"][:n], labels=arrays["labels"][:n])


@pytest.mark.parametrize("n", [5, 10, 40])
@pytest.mark.parametrize("method", ["sigma", "few-shot", "unit", "mmac"])
def test_the_advice_for_a_small_set_works(good_fit, digits, tmp_path, capfd, n, method):
    paths = {**good_fit, "data": _few(digits, tmp_path, n)}
    line = check_refused(fit_with(paths, "--method", method), capfd, f"{n} samples are too few", "are missing")
    advised = shlex.split(line.split("use these with ")[1])
    assert fit_with(paths, "--method", method, *advised) == 0
    manifest = load_bundle(paths["bundle"]).manifest
    assert manifest.method["name"] == "few-shot"
    assert manifest.thresholds["alert"].n == part_sizes(n)[1]


@pytest.mark.parametrize("n", range(5, 200, 7))
def test_the_rate_advised_is_the_lowest_to_two_digits_that_can_be_promised(n):
    n_threshold = part_sizes(n)[1]
    message = _message(n, method="few-shot", target_fpr=1e-4)
    rate = float(re.search(r"--target-fpr (\S+)", message)[1])
    assert required_samples(rate) <= n_threshold
    assert 0 <= rate - 1 / (n_threshold + 1) < 0.1 / (n_threshold + 1)


@pytest.mark.parametrize("n", range(5, 600, 31))
def test_the_rate_advised_for_a_certificate_is_the_lowest_to_two_digits_that_can_be_certified(n):
    n_threshold = part_sizes(n)[1]
    message = _message(n, method="few-shot", rule="certified", target_fpr=1e-4, correct_fpr=0.5)
    rate = float(re.search(r"--target-fpr (\S+)", message)[1])
    assert required_for_certificate(rate) <= n_threshold
    assert 0 <= rate - (1 - 0.05 ** (1 / n_threshold)) < 0.1 * rate


def test_the_method_is_changed_only_where_it_must_be():
    assert "--method few-shot" not in _message(100, method="sigma", max_accuracy_drop=0.1)
    message = _message(40, method="sigma", target_fpr=0.05)
    assert message.endswith("use these with --method few-shot")
    assert "--method sigma at --max-accuracy-drop 0.03 takes 53 in the bounds set" in message


def test_a_drop_that_is_to_be_shown_smaller_takes_more_samples():
    assert "takes 327 in the bounds set" in _message(800, method="sigma", max_accuracy_drop=0.005)
    check_enough(198, FitSettings(preprocessing=Preprocessing(), method="sigma"))


def test_samples_too_few_to_estimate_from_are_enough_without_the_estimate():
    message = _message(1248, estimate_tpr=True)
    assert "--estimate-tpr takes 500 in the bounds set, 40% of them, so it takes 1249 in all and 1 are" in message
    assert message.endswith("or use these without --estimate-tpr")
    check_enough(1249, FitSettings(preprocessing=Preprocessing(), estimate_tpr=True))


def test_too_few_for_both_are_told_both():
    assert _message(100, estimate_tpr=True, max_accuracy_drop=0.1).endswith(
        "use these with --target-fpr 0.02 and without --estimate-tpr"
    )


def test_the_correction_rate_is_advised_only_where_it_would_be_too_low():
    assert "--correct-fpr" in _message(10)
    assert "--correct-fpr" not in _message(10, correct_fpr=0.5)


@pytest.mark.parametrize("n", [1, 2, 3])
def test_where_nothing_works_the_least_number_that_does_is_named(n):
    message = _message(n)
    assert "use these with" not in message
    least = int(re.search(r"(\d+) are the least for any method", message)[1])
    assert "use these with" in _message(least)
    assert "use these with" not in _message(least - 1)


def test_every_method_says_how_many_samples_it_needs():
    assert METHODS.keys() <= NEEDS.keys()
    assert all(needs.n_samples >= 2 for needs in NEEDS.values())
