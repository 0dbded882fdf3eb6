"""What a configuration of Ray Serve says of the guard. Knows nothing of Ray."""

from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

from guard.errors import InputError
from serving.config import Limits, OnFlag, ServerConfig

__all__ = ["ReplicaSettings", "settings"]

_OF_CONFIG = ("model_name", "expose_scores", "host", "metrics_port")
_NOT_HERE = ("grace_s", "max_in_flight")
"""Limits that Ray keeps itself, and those in front of an upstream, which replicas are not."""

_FROM_ZERO = ("metrics_port", "max_queue_delay_s", "expose_scores")

_TYPES = MappingProxyType(
    {
        "bundle": (str,),
        "model_name": (str,),
        "host": (str,),
        "on_flag": (str,),
        "expose_scores": (bool,),
        "max_queue_delay_s": (int, float),
    }
)
"""The types of arguments that are no whole numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplicaSettings:
    """What each replica is started with.

    Args:
        bundle: The bundle's folder, on every node that may run a replica.
        threads: Of one model run.
        config: How to present the model; its host and metrics_port say where a replica may be scraped: at the first
            free one of 32 ports from there.
    """

    bundle: str
    threads: int
    config: ServerConfig


def settings(arguments: Mapping[str, Any]) -> ReplicaSettings:
    """Return what replicas are to be started with.

    Args:
        arguments: ``bundle``, ``threads``, and entries of ServerConfig and its Limits by their names.

    Raises:
        InputError: An argument is missing, unknown or impossible.
    """
    of_limits = [field.name for field in fields(Limits) if field.name not in _NOT_HERE]
    known = sorted({"threads", "metrics_port", *_TYPES, *of_limits})
    if unknown := sorted(arguments.keys() - set(known)):
        raise InputError(f"the argument {unknown[0]!r} is unknown; there are {', '.join(known)}")
    if "bundle" not in arguments:
        raise InputError("the argument 'bundle' is missing; give the folder of a bundle")
    for name, value in arguments.items():
        _check(name, value)
    own = {name: arguments[name] for name in _OF_CONFIG if name in arguments}
    limits = Limits(**{name: arguments[name] for name in of_limits if name in arguments})
    config = ServerConfig(on_flag=OnFlag(arguments.get("on_flag", OnFlag.CORRECT)), limits=limits, **own)
    return ReplicaSettings(bundle=arguments["bundle"], threads=arguments.get("threads", 1), config=config)


def _check(name: str, value: object) -> None:
    expected = _TYPES.get(name, (int,))
    if type(value) not in expected:
        raise InputError(f"the argument {name!r} is {value!r}; it takes {' or '.join(t.__name__ for t in expected)}")
    if name == "on_flag" and value not in tuple(OnFlag):
        raise InputError(f"the argument 'on_flag' is {value!r}; it can be {', '.join(OnFlag)}")
    least = 0 if name in _FROM_ZERO else 1
    if isinstance(value, int | float) and not least <= value < float("inf"):
        raise InputError(f"the argument {name!r} is {value}; the least is {least}")
