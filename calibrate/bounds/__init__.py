"""Ways to learn activation bounds, one file each; every one maps a BoundsProblem to ActivationBounds."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from calibrate.bounds.few_shot import fit_few_shot
from calibrate.bounds.mmac import MmacSettings, fit_mmac
from calibrate.bounds.mmac_published import fit_mmac_published
from calibrate.bounds.sigma import fit_sigma
from calibrate.bounds.unit import UnitSettings, fit_unit
from calibrate.bounds.unit_published import fit_unit_published
from calibrate.evaluation import least_rows
from calibrate.sites import ActivationBounds, BoundsProblem

__all__ = ["AUTO", "METHODS", "NEEDS", "Method", "Needs"]

Method = Callable[[BoundsProblem], ActivationBounds]

AUTO = "auto"
"""The method that nobody has to choose: the bounds of few-shot, with the one-pass detector."""

METHODS: Mapping[str, Method] = MappingProxyType({
    AUTO: fit_few_shot,
    "few-shot": fit_few_shot,
    "mmac": fit_mmac,
    "mmac-published": fit_mmac_published,
    "sigma": fit_sigma,
    "unit": fit_unit,
    "unit-published": fit_unit_published,
})  # fmt: skip
"""Every method by the name that the command line knows it by."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """What a method asks of the bounds set.

    Args:
        n_samples: The smallest sensible number.
        measured_share: The share of them on which it has to be shown that bounds cost no more accuracy than allowed; 0
            where a method asks for no confidence in that.
        several_classes: Whether samples of one class alone would teach it wrong.
    """

    n_samples: int = 1
    measured_share: float = 0.0
    several_classes: bool = False

    def of_bounds_set(self, max_accuracy_drop: float) -> int:
        """Return the least number of samples with which the method can succeed where so much accuracy may be lost."""
        if not self.measured_share:
            return self.n_samples
        return max(self.n_samples, math.ceil(least_rows(max_accuracy_drop) / self.measured_share))


NEEDS: Mapping[str, Needs] = MappingProxyType({
    AUTO: Needs(n_samples=5),
    "few-shot": Needs(n_samples=2),
    "mmac": Needs(n_samples=30, measured_share=MmacSettings().validation_fraction, several_classes=True),
    "mmac-published": Needs(n_samples=30, several_classes=True),
    "sigma": Needs(n_samples=15, measured_share=1.0),
    "unit": Needs(n_samples=30, measured_share=UnitSettings().validation_fraction, several_classes=True),
    "unit-published": Needs(n_samples=30, several_classes=True),
})  # fmt: skip
"""By method."""
