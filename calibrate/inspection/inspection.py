"""All that an inspection found, and its form as JSON."""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Literal

from calibrate.inspection.ban import BanFindings
from calibrate.inspection.lint_finding import LintFinding
from calibrate.inspection.suspicion import SuspicionFindings
from calibrate.inspection.verdict import Judgement, MesaComparison

__all__ = ["Depth", "Inspection", "NotLookedAt"]

Depth = Literal["quick", "standard", "full"]
"""``quick``: lint and suspicion; ``standard``: BAN besides; ``full``: MESA besides."""

_HALF = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class NotLookedAt:
    """A look that was not taken.

    Args:
        look: ``suspicion``, ``ban`` or ``mesa``.
        reason: Why, and what would change it.
    """

    look: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Inspection:
    """All that an inspection found.

    Args:
        model: The model's name, SHA-256 and size.
        verdict: What it comes to.
        lint: What stands out in the graph, the gravest first.
        suspicion: None where it was not looked at, as with the others.
        ban: See calibrate.inspection.ban.
        mesa: See calibrate.inspection.mesa.
        not_looked_at: What was left out, and why.
        depth: What was asked for.
        n_samples: Clean inputs that were used.
        n_skipped: Images that could not be read.
        label_agreement: The share of the first labels that the model agrees with; None where none were given, so that
            its own predictions stood in.
        versions: Of what computed it.
        seed: Of everything drawn at random.
    """

    model: Mapping[str, object]
    verdict: Judgement
    lint: tuple[LintFinding, ...]
    suspicion: SuspicionFindings | None
    ban: BanFindings | None
    mesa: MesaComparison | None
    not_looked_at: tuple[NotLookedAt, ...]
    depth: Depth
    n_samples: int
    n_skipped: int
    label_agreement: float | None
    versions: Mapping[str, str]
    seed: int

    @property
    def has_labels(self) -> bool:
        """Whether labels were given."""
        return self.label_agreement is not None

    def warnings(self) -> Iterator[str]:
        """Yield what a careful reader should know before trusting the verdict."""
        if self.label_agreement is not None and self.label_agreement < _HALF:
            yield (
                f"The model agrees with only {self.label_agreement:.1%} of the labels: check the order of the classes"
                " and the preprocessing (--mean, --std, --scale, --layout)."
            )
        if self.n_skipped:
            yield f"{self.n_skipped} images could not be read and were skipped."

    def summary(self) -> dict[str, object]:
        """Return everything as JSON can hold it; what was not looked at is None."""
        looks = {"suspicion": self.suspicion, "ban": self.ban, "mesa": self.mesa}
        return {
            "verdict": self.verdict.verdict,
            "suspected_target_class": self.verdict.suspected_target_class,
            "lint": [asdict(finding) for finding in self.lint],
            **{name: None if found is None else dict(found.summary()) for name, found in looks.items()},
            "evidence": [asdict(evidence) for evidence in self.verdict.evidence],
            "not_looked_at": [asdict(left) for left in self.not_looked_at],
            "model": dict(self.model),
            "depth": self.depth,
            "n_samples": self.n_samples,
            "n_skipped": self.n_skipped,
            "labels": "given" if self.has_labels else "predicted by the model",
            "label_agreement": self.label_agreement,
            "versions": dict(self.versions),
            "seed": self.seed,
        }
