"""One thing that a lint has to say."""

from dataclasses import dataclass
from typing import Literal

__all__ = ["LintFinding", "Severity"]

Severity = Literal["alarm", "warning", "note"]
"""An alarm is what no honest export holds, a warning what few do, a note what to know about the model."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LintFinding:
    """One thing found in a graph.

    Args:
        kind: What it is, for programs to compare.
        severity: How it counts.
        place: The node, tensor or domain.
        message: What it means, in one sentence.
    """

    kind: str
    severity: Severity
    place: str
    message: str
