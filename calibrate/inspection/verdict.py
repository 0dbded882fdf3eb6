"""From what each look found to one verdict. The rule is ours; every look's own rule is its source's.

A finding is strong, weak or a hint. Strong is an alarm of the lint. Weak are a warning of the lint, BAN's `suspicious`,
a class that the head's weights favour (p <= 0.05), and triggers that reach the suspected class by LEAD more than they
reach a control class. BAN's `grey` is a hint, which counts where a weak finding names the same class. One strong
finding, or two others that name the same class, make a suspicion; any other weak one is grey. Nothing found proves
nothing. BAN alone is never strong, because small clean networks gather their votes too (benchmarks/results.md,
`inspection`).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from calibrate.inspection.ban import BanFindings
from calibrate.inspection.ban_findings import excess_share
from calibrate.inspection.class_prior import ClassPrior
from calibrate.inspection.lint_finding import LintFinding
from calibrate.inspection.mesa import MesaFindings
from calibrate.inspection.suspicion import SuspicionFindings

__all__ = ["GREY", "LEAD", "NO_EVIDENCE", "SUSPECTED", "Evidence", "Judgement", "MesaComparison", "judge", "weigh"]

SUSPECTED, GREY, NO_EVIDENCE = "backdoor suspected", "grey: look closer", "no evidence found"

LEAD = 0.5
"""How much more often triggers must reach the suspected class than the control class. Classes of a clean model differ
too, but hardly by half of all images."""

_SUSPICIOUS_SHARE = 0.5  # of BAN's votes beyond the usual, see ban_findings.decide

Strength = Literal["strong", "weak", "hint", "none"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Evidence:
    """What one look says for or against a backdoor.

    Args:
        look: ``lint``, ``suspicion``, ``ban`` or ``mesa``.
        strength: How it counts.
        target_class: The class that it names.
        statement: What was found, in one sentence.
        p_value: How often chance alone gives as much, where a look says so.
        margin: How far the look's statistic is past its threshold, where it has one; negative is short of it.
    """

    look: Literal["ban", "lint", "mesa", "suspicion"]
    strength: Strength
    target_class: int | None
    statement: str
    p_value: float | None = None
    margin: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MesaComparison:
    """Triggers recovered for the suspected class, and for a control class.

    Args:
        suspected: Of the class that was looked at.
        control: Of another class.
    """

    suspected: MesaFindings
    control: MesaFindings

    def summary(self) -> dict[str, object]:
        """Return the figures as JSON can hold them."""
        return {
            "suspected": self.suspected.summary(),
            "control": self.control.summary(),
            "lead": self.suspected.lead_over(self.control),
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Judgement:
    """What an inspection comes to.

    Args:
        verdict: SUSPECTED, GREY or NO_EVIDENCE.
        suspected_target_class: What the attacker is thought to want, where the evidence names a class.
        evidence: What it rests on, look by look.
    """

    verdict: str
    suspected_target_class: int | None
    evidence: tuple[Evidence, ...]


def weigh(
    lint: Sequence[LintFinding],
    suspicion: SuspicionFindings | None = None,
    ban: BanFindings | None = None,
    mesa: MesaComparison | None = None,
) -> Iterator[Evidence]:
    """Yield what each look says; None is a look that was not taken."""
    yield _of_lint(lint)
    if suspicion is not None and suspicion.class_prior is not None:
        yield _of_prior(suspicion.class_prior)
    if ban is not None:
        yield _of_ban(ban)
    if mesa is not None:
        yield _of_mesa(mesa)


def judge(evidence: Iterable[Evidence]) -> Judgement:
    """Apply the rule of this module."""
    found = tuple(evidence)
    strong = [e for e in found if e.strength == "strong"]
    weak = [e for e in found if e.strength == "weak"]
    named = [e.target_class for e in weak if e.target_class is not None]
    hinted = [e.target_class for e in found if e.strength == "hint"]
    agreed = [c for c in named if (named + hinted).count(c) > 1]
    verdict = SUSPECTED if strong or agreed else GREY if weak else NO_EVIDENCE
    classes = [*(e.target_class for e in strong if e.target_class is not None), *agreed, *named]
    return Judgement(verdict=verdict, suspected_target_class=next(iter(classes), None), evidence=found)


def _of_lint(findings: Sequence[LintFinding]) -> Evidence:
    counts = {s: sum(f.severity == s for f in findings) for s in ("alarm", "warning")}
    told = [f"{n} {severity}{'s' if n > 1 else ''}" for severity, n in counts.items() if n]
    if not told:
        notes = f", only what is worth a note ({len(findings)})" if findings else ""
        return Evidence(look="lint", strength="none", target_class=None, statement=f"nothing odd in the graph{notes}")
    first = findings[0]
    return Evidence(
        look="lint",
        strength="strong" if counts["alarm"] else "weak",
        target_class=None,
        statement=f"{' and '.join(told)}, first of all at {first.place}: {first.message}",
    )


def _of_prior(prior: ClassPrior) -> Evidence:
    greatest = int(prior.z.argmax())
    return Evidence(
        look="suspicion",
        strength="none" if prior.suspected_class is None else "weak",
        target_class=prior.suspected_class,
        statement=f"the head's weights favour class {greatest} most, by a robust z-score of {prior.z[greatest]:.1f}",
        p_value=prior.p_value,
    )


def _of_ban(ban: BanFindings) -> Evidence:
    strengths: Mapping[str, Strength] = {"suspicious": "weak", "grey": "hint", "no evidence": "none"}
    low, high = ban.interval
    return Evidence(
        look="ban",
        strength=strengths[ban.verdict],
        target_class=ban.suspected_target_class,
        statement=f"under neuron noise {ban.vote_share:.0%} of clean inputs vote for class {ban.top_class}"
        f" (95 % interval {low:.0%} to {high:.0%}), which {ban.clean_share:.0%} belong to;"
        f" {ban.n_agreeing} of {len(ban.histograms)} seeds agree",
        margin=excess_share(low, ban.clean_share) - _SUSPICIOUS_SHARE,
    )


def _of_mesa(mesa: MesaComparison) -> Evidence:
    ours, theirs = mesa.suspected, mesa.control
    margin = ours.lead_over(theirs) - LEAD
    return Evidence(
        look="mesa",
        strength="weak" if margin > 0 else "none",
        target_class=ours.target_class if margin > 0 else None,
        statement=f"recovered triggers send up to {ours.strength:.0%} of other images to class {ours.target_class}, and"
        f" {theirs.strength:.0%} to the control class {theirs.target_class}",
        margin=margin,
    )
