"""Which class the last layer's weights favour: a prior from the weights alone, in milliseconds."""

from dataclasses import dataclass

import numpy as np
import onnx

from calibrate.inspection.channel_weights import find_head
from calibrate.inspection.robust import robust_z
from guard.types import FloatArray

__all__ = ["ClassPrior", "class_prior", "prior_of"]

_LEVEL = 0.05
_N_DRAWS = 2000
_ROUNDING = 1e-9  # of three classes every other draw has the very same greatest z-score
_LEAST_CLASSES = 3  # of two, each is as far from the median as the other


@dataclass(frozen=True, slots=True, kw_only=True)
class ClassPrior:
    """How far each class's weights in the head are from the other classes'.

    Args:
        z: (C,) robust z-scores of the classes.
        p_value: How often the largest of C normal values lies so far out, by simulation. It accounts for C classes
            having been looked at; that a clean head's classes are normal is assumed.
    """

    z: FloatArray
    p_value: float

    @property
    def suspected_class(self) -> int | None:
        """The class that stands out, at 5 %; None where none does."""
        return int(self.z.argmax()) if self.p_value <= _LEVEL else None

    def summary(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        return {
            "z": [round(float(z), 4) for z in self.z],
            "greatest": int(self.z.argmax()),
            "p_value": round(self.p_value, 6),
            "suspected_class": self.suspected_class,
        }


def class_prior(model: onnx.ModelProto, logits: str, *, n_classes: int) -> ClassPrior | None:
    """Compare the classes' weights in the head; None where the graph's head is not found or has two classes."""
    head = find_head(model, logits, n_classes=n_classes) if n_classes >= _LEAST_CLASSES else None
    return None if head is None else prior_of(head)


def prior_of(head: FloatArray) -> ClassPrior:
    """Compare the classes of a head (C, n_in) by how much weight raises them.

    The statistic is ours: the sum over inputs of max(W[c, j] - mean over classes of W[:, j], 0).
    """
    z = robust_z(np.maximum(head - head.mean(axis=0), 0).sum(axis=1))
    drawn = np.random.default_rng(0).normal(size=(_N_DRAWS, len(z)))
    greatest = np.array([robust_z(row).max() for row in drawn])
    return ClassPrior(z=z, p_value=float((1 + (greatest >= z.max() - _ROUNDING).sum()) / (1 + _N_DRAWS)))
