"""What a fit refuses before its long work."""

from collections.abc import Mapping, Sequence

from calibrate.bounds import NEEDS, Method, Needs
from calibrate.data import Preprocessing
from calibrate.differentiable import check_device
from calibrate.draft import FitSettings
from calibrate.labels import check_several_classes
from calibrate.thresholds import RULES
from guard.errors import InputError
from guard.scores import ONE_PASS, SCORES
from guard.types import IntArray, TensorSpec

__all__ = ["check_classes", "check_preprocessing", "check_settings"]

_LEAST_RATE = 1e-6  # which takes a million samples


def check_settings(settings: FitSettings, methods: Mapping[str, Method]) -> None:
    """Refuse settings that cannot be.

    Raises:
        InputError: One of them is out of range, unknown, or goes with another that is not there.
    """
    _check_rates(settings)
    if not 0 <= settings.seed < 2**63:
        raise InputError(f"seed is {settings.seed}; it is a whole number from 0 to below 2**63")
    if settings.target_class is not None and not settings.estimate_tpr:
        raise InputError("--target-class is for --estimate-tpr; give both, or neither")
    check_device(settings.device)
    for name, known in (("method", methods), ("score", (*SCORES, ONE_PASS, None)), ("rule", RULES)):
        if (chosen := getattr(settings, name)) not in known:
            raise InputError(f"there is no {name} {chosen!r}; choose one of {', '.join(map(str, filter(None, known)))}")


def _check_rates(settings: FitSettings) -> None:
    for name in ("target_fpr", "correct_fpr"):
        rate = getattr(settings, name)
        if not _LEAST_RATE <= rate < 1:
            raise InputError(f"{name} is {rate:g}; it is a fraction from {_LEAST_RATE:g} to below 1, such as 0.01")
    if settings.correct_fpr < settings.target_fpr:
        raise InputError(
            f"correct_fpr is {settings.correct_fpr:g}, below target_fpr {settings.target_fpr:g}; what is flagged is"
            " also corrected, so it must be at least as high"
        )
    if not 0 <= settings.max_accuracy_drop < 1:
        raise InputError(f"max_accuracy_drop is {settings.max_accuracy_drop:g}; it is a fraction, such as 0.03")
    if settings.max_accuracy_drop == 0 and NEEDS.get(settings.method, Needs()).measured_share:
        raise InputError(
            "max_accuracy_drop is 0, which no number of samples can show with the confidence that --method"
            f" {settings.method} asks for; allow more than 0, such as 0.03"
        )


def check_preprocessing(inputs: Sequence[TensorSpec], preprocessing: Preprocessing) -> None:
    """Refuse a mean or std of another number of channels, even where the data are model-ready: the bundle keeps it."""
    spec = inputs[0]
    if len(inputs) > 1 or len(spec.shape) != 4:
        return
    channels = spec.shape[1 if preprocessing.layout == "nchw" else 3]
    for name in ("mean", "std"):
        n_given = len(getattr(preprocessing, name))
        if channels is not None and n_given not in (1, channels):
            raise InputError(
                f"{name} has {n_given} values, but the model's input {spec} has {channels} channels; give one value,"
                " or one per channel"
            )


def check_classes(labels: IntArray, settings: FitSettings) -> None:
    """Refuse labels of the bounds set, given or predicted, of one class where the method needs several."""
    if NEEDS.get(settings.method, Needs()).several_classes:
        check_several_classes(labels, wanted_by=f"--method {settings.method}")
    if settings.estimate_tpr:
        check_several_classes(labels, wanted_by="--estimate-tpr")
