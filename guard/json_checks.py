"""Predicates on the values of a JSON document that nobody vouches for."""

import math
import re
from collections.abc import Callable, Iterable
from typing import Any

__all__ = [
    "Check",
    "is_classes",
    "is_count",
    "is_finite",
    "is_map",
    "is_number",
    "is_numbers",
    "is_object",
    "is_one_of",
    "is_rate",
    "is_record",
    "is_sha256",
    "is_shape",
    "is_text",
    "is_texts",
]

Check = Callable[[Any], bool]


def is_object(value: object) -> bool:
    """Accept objects."""
    return isinstance(value, dict)


def is_text(value: object) -> bool:
    """Accept texts."""
    return isinstance(value, str)


def is_sha256(value: object) -> bool:
    """Accept SHA-256 digests in hexadecimal."""
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def is_finite(value: object) -> bool:
    """Accept finite numbers that are no whole ones by form."""
    return isinstance(value, float) and math.isfinite(value)


def is_number(value: object) -> bool:
    """Accept finite numbers."""
    return is_finite(value) or is_count(value)


def is_numbers(value: object) -> bool:
    """Accept lists of finite numbers, one at least."""
    return isinstance(value, list) and len(value) > 0 and all(map(is_number, value))


def is_texts(value: object) -> bool:
    """Accept lists of texts, one at least."""
    return isinstance(value, list) and len(value) > 0 and all(map(is_text, value))


def is_rate(value: object) -> bool:
    """Accept fractions between 0 and 1."""
    return isinstance(value, float) and 0 < value < 1


def is_count(value: object) -> bool:
    """Accept whole numbers from 0."""
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def is_shape(value: object) -> bool:
    """Accept lists of positive whole numbers, or null where free."""
    return isinstance(value, list) and len(value) > 0 and all(n is None or (is_count(n) and n > 0) for n in value)


def is_classes(value: Any) -> bool:
    """Accept the shape (N, C) with two classes or more."""
    return is_shape(value) and len(value) == 2 and value[1] is not None and value[1] >= 2


def is_one_of(values: Iterable[str]) -> Check:
    """Accept these texts."""
    known = frozenset(values)
    return lambda value: isinstance(value, str) and value in known


def is_record(**parts: Check) -> Check:
    """Accept objects of exactly these keys, whose values are accepted."""
    return lambda value: (
        isinstance(value, dict)
        and value.keys() == parts.keys()
        and all(is_right(value[key]) for key, is_right in parts.items())
    )


def is_map(is_right: Check) -> Check:
    """Accept objects whose values are accepted."""
    return lambda value: isinstance(value, dict) and all(map(is_right, value.values()))
