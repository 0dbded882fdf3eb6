"""What MESA found: per generator its triggers and how well they work, and how a class compares with a control."""

from collections.abc import Sequence
from dataclasses import dataclass

from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.triggers import TriggerDistribution
from calibrate.proportions import Proportion

__all__ = ["MesaFindings", "RecoveredTriggers"]


@dataclass(frozen=True, slots=True, kw_only=True)
class RecoveredTriggers:
    """What one generator found.

    Args:
        distribution: Its triggers.
        asr: Images not used for fitting, of other classes, that a trigger sends to the target class.
        diversity: The mean pairwise L2 distance of triggers, values taken to [0, 1].
        kept: Whether the success is at least beta - 0.1.
        iterations: Steps taken.
        stopped: Why training ended.
    """

    distribution: TriggerDistribution
    asr: Proportion
    diversity: float
    kept: bool
    iterations: int
    stopped: str

    def summary(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        found = self.distribution
        low, high = self.asr.interval()
        return {
            "family": found.kind.family,
            "size": found.kind.size,
            "strength": found.kind.strength,
            "beta": found.beta,
            "alpha": found.alpha,
            "asr": self.asr.share,
            "asr_interval": [low, high],
            "n_measured": self.asr.n,
            "diversity": self.diversity,
            "kept": self.kept,
            "iterations": self.iterations,
            "stopped": self.stopped,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class MesaFindings:
    """What was recovered for one class.

    Args:
        target_class: The class.
        generators: Every generator that was trained, kind by kind, levels ascending; levels above one that was not
            reached were not tried.
    """

    target_class: int
    generators: tuple[RecoveredTriggers, ...]

    @property
    def kept(self) -> tuple[TriggerDistribution, ...]:
        """The distributions that reach their level."""
        return tuple(found.distribution for found in self.generators if found.kept)

    @property
    def strength(self) -> float:
        """The highest measured success of any kind and level."""
        return max(found.asr.share for found in self.generators)

    def lead_over(self, control: "MesaFindings") -> float:
        """Return by how much this class is reached more easily than a control class, from -1 to 1.

        For each kind the best success of either class counts; the lead is the lower end of this class's 95 % interval
        less the upper end of the control's, and the greatest over kinds is returned: above 0 is no chance.
        """
        ours, theirs = _best_by_kind(self.generators), _best_by_kind(control.generators)
        leads = [ours[kind].interval()[0] - theirs[kind].interval()[1] for kind in ours.keys() & theirs.keys()]
        return max(leads, default=0.0)

    def summary(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        return {
            "target_class": self.target_class,
            "strength": self.strength,
            "n_kept": len(self.kept),
            "generators": [found.summary() for found in self.generators],
        }


def _best_by_kind(generators: Sequence[RecoveredTriggers]) -> dict[TriggerKind, Proportion]:
    ascending = sorted(generators, key=lambda found: found.asr.share)
    return {found.distribution.kind: found.asr for found in ascending}
