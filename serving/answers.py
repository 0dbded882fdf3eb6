"""What a client is told about a verdict, in each mode: names, types and values of the output tensors."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from guard.errors import BundleError
from guard.manifest import Manifest
from guard.types import BoolArray, FloatArray, TensorSpec, Verdict
from serving.config import OnFlag
from serving.errors import FlaggedError

__all__ = ["CORRECTED_CLASS", "FLAGGED", "PREDICTED_CLASS", "P_VALUE", "check_flagged", "guard_tensors", "output_specs"]

FLAGGED = "guard_flagged"
PREDICTED_CLASS = "guard_predicted_class"
CORRECTED_CLASS = "guard_corrected_class"
P_VALUE = "guard_p_value"

_MAX_ROWS_NAMED = 10


def output_specs(manifest: Manifest, *, on_flag: OnFlag, expose_scores: bool) -> tuple[TensorSpec, ...]:
    """Return the outputs a client sees: the model's own, and but for shadow mode the guard's.

    Raises:
        BundleError: The model's own output has the name of one of the guard's.
    """
    guards = {FLAGGED: "bool", PREDICTED_CLASS: "int64", CORRECTED_CLASS: "int64"}
    if expose_scores:
        guards[P_VALUE] = "float32"
    if manifest.output.name in guards:
        raise BundleError(f"the model's output is named {manifest.output.name}, which the guard adds; rename it")
    own = manifest.output.with_free_batch()
    if on_flag is OnFlag.SHADOW:
        return (own,)
    return (own, *(TensorSpec(name=name, dtype=dtype, shape=(None,)) for name, dtype in guards.items()))


def guard_tensors(
    original: FloatArray, verdict: Verdict, *, output: str, on_flag: OnFlag, expose_scores: bool
) -> Mapping[str, NDArray[Any]]:
    """Return the output tensors of one verdict, for every mode but shadow.

    Args:
        original: The original model's outputs (N, C).
        verdict: The guard's judgement of the same rows.
        output: The name of the model's own output.
        on_flag: ``flag`` gives the original's outputs, ``correct`` and ``reject`` the verdict's.
        expose_scores: Whether p-values are among them. The divergence never is.

    Raises:
        FlaggedError: A row is flagged and the mode is ``reject``.
    """
    if on_flag is OnFlag.REJECT:
        check_flagged(verdict.flagged)
    tensors: dict[str, NDArray[Any]] = {
        output: original if on_flag is OnFlag.FLAG else verdict.outputs,
        FLAGGED: verdict.flagged,
        PREDICTED_CLASS: verdict.predicted_class,
        CORRECTED_CLASS: verdict.corrected_class,
    }
    if expose_scores:
        tensors[P_VALUE] = verdict.p_value.astype(np.float32)
    return tensors


def check_flagged(flagged: BoolArray) -> None:
    """Refuse a batch with flagged rows.

    Raises:
        FlaggedError: Names the rows, the first few of them.
    """
    rows = np.flatnonzero(flagged)
    if not rows.size:
        return
    named = ", ".join(map(str, rows[:_MAX_ROWS_NAMED]))
    more = f" and {rows.size - _MAX_ROWS_NAMED} more" if rows.size > _MAX_ROWS_NAMED else ""
    raise FlaggedError(f"the guard rejects {rows.size} of {len(flagged)} rows as triggered: row {named}{more}")
