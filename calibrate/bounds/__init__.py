"""Ways to learn activation bounds, one file each; every one maps a BoundsProblem to ActivationBounds."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from calibrate.bounds.sigma import fit_sigma
from calibrate.bounds.unit import fit_unit
from calibrate.bounds.unit_published import fit_unit_published
from calibrate.sites import ActivationBounds, BoundsProblem

__all__ = ["METHODS", "Method"]

Method = Callable[[BoundsProblem], ActivationBounds]

METHODS: Mapping[str, Method] = MappingProxyType({
    "sigma": fit_sigma,
    "unit": fit_unit,
    "unit-published": fit_unit_published,
})  # fmt: skip
"""Every method by the name that the command line knows it by."""
