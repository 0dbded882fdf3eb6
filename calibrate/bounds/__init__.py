"""Ways to learn activation bounds, one file each; every one maps a BoundsProblem to ActivationBounds."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from calibrate.bounds.few_shot import fit_few_shot
from calibrate.bounds.mmac import fit_mmac
from calibrate.bounds.mmac_published import fit_mmac_published
from calibrate.bounds.sigma import fit_sigma
from calibrate.bounds.unit import fit_unit
from calibrate.bounds.unit_published import fit_unit_published
from calibrate.sites import ActivationBounds, BoundsProblem

__all__ = ["METHODS", "NEEDS", "Method", "Needs"]

Method = Callable[[BoundsProblem], ActivationBounds]

METHODS: Mapping[str, Method] = MappingProxyType({
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
        several_classes: Whether samples of one class alone would teach it wrong.
    """

    n_samples: int = 1
    several_classes: bool = False


NEEDS: Mapping[str, Needs] = MappingProxyType({
    "few-shot": Needs(n_samples=2),
    "mmac": Needs(n_samples=30, several_classes=True),
    "mmac-published": Needs(n_samples=30, several_classes=True),
    "sigma": Needs(n_samples=15),  # of 50 in all
    "unit": Needs(n_samples=30, several_classes=True),
    "unit-published": Needs(n_samples=30, several_classes=True),
})  # fmt: skip
"""By method."""
