"""What a fit may be asked for, and how many samples that takes."""

import pytest
from digits import fit

from calibrate.pipeline import FitSettings
from calibrate.preprocessing import Preprocessing
from guard.bundle import load_bundle
from guard.errors import CalibrationError, InputError


@pytest.mark.parametrize("target_fpr", [0.003, 0.01, 0.013, 0.05, 0.3, 0.5, 0.9])
def test_as_many_samples_as_are_missing_are_enough_and_one_less_is_not(digits, tmp_path, target_fpr):
    rates = {"target_fpr": target_fpr, "correct_fpr": max(target_fpr, 0.1)}
    with pytest.raises(CalibrationError, match="are missing") as caught:
        fit(digits.model, digits.clean, tmp_path / "bundle", limit=1, **rates)
    total = 1 + int(str(caught.value).split(" are missing")[0].split()[-1])
    with pytest.raises(CalibrationError, match="1 are missing"):
        fit(digits.model, digits.clean, tmp_path / "bundle", limit=total - 1, **rates)
    assert load_bundle(fit(digits.model, digits.clean, tmp_path / "bundle", limit=total, **rates))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"target_fpr": 0.0}, "target_fpr is 0"),
        ({"target_fpr": 1.0}, "target_fpr is 1"),
        ({"target_fpr": -0.1}, "target_fpr is -0.1"),
        ({"target_fpr": float("nan")}, "target_fpr is nan"),
        ({"correct_fpr": 2.0}, "correct_fpr is 2"),
        ({"correct_fpr": 0.01}, "below target_fpr 0.05"),
        ({"max_accuracy_drop": -0.1}, "max_accuracy_drop is -0.1"),
        ({"method": "magic"}, "there is no method 'magic'"),
        ({"score": "magic"}, "there is no score 'magic'"),
        ({"rule": "magic"}, "there is no rule 'magic'"),
        ({"seed": -1}, "seed is -1"),
        ({"limit": 0}, "limit 0"),
        ({"preprocessing": Preprocessing(mean=(0.1, 0.2))}, "mean has 2 values"),
        ({"preprocessing": Preprocessing(std=(1.0, 1.0, 1.0))}, "std has 3 values"),
    ],
)
def test_settings_that_mean_nothing_are_refused(digits, tmp_path, change, message):
    with pytest.raises(InputError, match=message):
        fit(digits.model, digits.clean, tmp_path / "bundle", **change)
    assert list(tmp_path.iterdir()) == []


def test_the_mean_of_three_channels_fits_a_model_whose_channels_are_last(digits, tmp_path):
    nhwc = Preprocessing(mean=(0.1, 0.2, 0.3), layout="nhwc")
    with pytest.raises(InputError, match="8 channels"):
        fit(digits.model, digits.clean, tmp_path / "bundle", preprocessing=nhwc)


def test_settings_have_defaults_that_agree():
    settings = FitSettings(preprocessing=Preprocessing())
    assert 0 < settings.target_fpr <= settings.correct_fpr < 1
