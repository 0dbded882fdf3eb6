"""Trigger Guard's runtime: judge the inputs of a classifier that somebody else trained, and correct its answers."""

from guard.errors import BundleError, CalibrationError, GuardError, InputError, ModelError
from guard.runtime import Guard
from guard.types import CappedChannel, Evidence, TensorSpec, Threshold, Verdict

__all__ = [
    "BundleError",
    "CalibrationError",
    "CappedChannel",
    "Evidence",
    "Guard",
    "GuardError",
    "InputError",
    "ModelError",
    "TensorSpec",
    "Threshold",
    "Verdict",
]
