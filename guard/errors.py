"""What can go wrong, in one tree.

GuardError
├── BundleError        a bundle on disk is missing, damaged, unsafe or of another format version
├── CalibrationError   no guard can be fitted: too few samples, nothing to bound, an unknown operator
├── InputError         data handed in does not fit: file, shape, dtype, class count, NaN
└── ModelError         a model does not load, does not run, or answers with values that are no answer

Every message names the value, the expectation and the fix.
"""

__all__ = ["BundleError", "CalibrationError", "GuardError", "InputError", "ModelError"]


class GuardError(Exception):
    """Any error that this project raises on purpose."""


class BundleError(GuardError):
    """A bundle cannot be trusted or read."""


class CalibrationError(GuardError):
    """No guard can be fitted from what was given."""


class InputError(GuardError):
    """Data handed in does not fit the model, or is not data at all."""


class ModelError(GuardError):
    """A model does not load, does not run, or gives values that are no answer."""
