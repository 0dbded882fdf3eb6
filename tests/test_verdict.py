"""The verdict: what each look's findings count for, and what they come to together."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibrate.inspection.ban import BanSettings
from calibrate.inspection.ban_findings import findings_of
from calibrate.inspection.class_prior import ClassPrior
from calibrate.inspection.lint_finding import LintFinding
from calibrate.inspection.mesa_findings import MesaFindings, RecoveredTriggers
from calibrate.inspection.suspicion import SuspicionFindings
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.trigger_places import Places
from calibrate.inspection.triggers import TriggerDistribution
from calibrate.inspection.verdict import GREY, NO_EVIDENCE, SUSPECTED, Evidence, MesaComparison, judge, weigh
from calibrate.proportions import Proportion

NOTE, WARNING, ALARM = (
    LintFinding(kind="k", severity=severity, place="Conv 'c'", message="it is odd")
    for severity in ("note", "warning", "alarm")
)
VERDICTS = (NO_EVIDENCE, GREY, SUSPECTED)


def suspicion(*, p_value: float, greatest: int = 1) -> SuspicionFindings:
    prior = ClassPrior(z=np.eye(3)[greatest] * 5, p_value=p_value)
    return SuspicionFindings(scores={}, terms={}, left_out={}, n_samples=10, class_prior=prior)


def ban(share: float, *, top: int = 1, n: int = 1000):
    votes = np.where(np.arange(n) < share * n, top, (top + 1 + np.arange(n) % 2) % 3)
    return findings_of([votes] * 5, np.arange(n) % 3, 3, noise_on="BatchNorm", features="f", unneeded=np.ones(4),
                       settings=BanSettings())  # fmt: skip


def mesa(suspected: int, control: int, *, target: int = 1) -> MesaComparison:
    """Compare classes whose triggers succeed on so many of 100 images."""
    kind = TriggerKind(family="patch", size=1)
    found = []
    for cls, count in ((target, suspected), ((target + 1) % 3, control)):
        distribution = TriggerDistribution(
            kind=kind, target_class=cls, beta=0.9, alpha=0.1, channel_axis=1,
            places=Places(corners=np.zeros((1, 2), np.int64), weights=np.ones(1)),
            bank=np.ones((2, 1, 1, 1), np.float32),
        )  # fmt: skip
        triggers = RecoveredTriggers(distribution=distribution, asr=Proportion(count=count, n=100), diversity=0.0,
                                     kept=count >= 80, iterations=1, stopped="")  # fmt: skip
        found.append(MesaFindings(target_class=cls, generators=(triggers,)))
    return MesaComparison(suspected=found[0], control=found[1])


def verdict_of(*arguments, **looks) -> tuple[str, int | None]:
    found = judge(weigh(*arguments, **looks))
    return found.verdict, found.suspected_target_class


@pytest.mark.parametrize(
    ("findings", "verdict"),
    [((), NO_EVIDENCE), ((NOTE,), NO_EVIDENCE), ((WARNING, NOTE), GREY), ((ALARM, WARNING), SUSPECTED)],
)
def test_the_lint_alone_names_no_class(findings, verdict):
    assert verdict_of(findings) == (verdict, None)


@pytest.mark.parametrize(("p_value", "expected"), [(0.04, (GREY, 1)), (0.06, (NO_EVIDENCE, None))])
def test_a_favoured_class_alone_is_grey(p_value, expected):
    assert verdict_of((), suspicion(p_value=p_value)) == expected


@pytest.mark.parametrize(
    ("share", "expected"), [(0.95, (GREY, 1)), (0.6, (NO_EVIDENCE, None)), (0.4, (NO_EVIDENCE, None))]
)
def test_ban_alone_is_grey_at_most(share, expected):
    assert verdict_of((), ban=ban(share)) == expected


def test_weak_findings_that_agree_on_a_class_are_a_suspicion():
    assert verdict_of((), suspicion(p_value=0.01), ban(0.6)) == (SUSPECTED, 1)
    assert verdict_of((), suspicion(p_value=0.01), ban(0.4), mesa(90, 10)) == (SUSPECTED, 1)


def test_weak_findings_that_disagree_stay_grey_with_the_class_that_has_a_p_value():
    assert verdict_of((WARNING,), suspicion(p_value=0.01, greatest=2), ban(0.6)) == (GREY, 2)


def test_the_class_that_two_looks_agree_on_overrules_the_class_of_another():
    looks = {"suspicion": suspicion(p_value=0.01, greatest=2), "ban": ban(0.95), "mesa": mesa(90, 10)}
    assert verdict_of((), **looks) == (SUSPECTED, 1)


@pytest.mark.parametrize(("counts", "expected"), [((95, 5), (GREY, 1)), ((95, 60), (NO_EVIDENCE, None))])
def test_triggers_count_where_the_control_class_is_hardly_reached(counts, expected):
    assert verdict_of((), mesa=mesa(*counts)) == expected


def test_every_look_says_its_p_value_or_margin():
    found = {e.look: e for e in weigh((ALARM,), suspicion(p_value=0.01), ban(0.95), mesa(95, 5))}
    assert found["lint"].statement == "1 alarm, first of all at Conv 'c': it is odd"
    assert found["suspicion"].p_value == 0.01
    assert found["ban"].margin == pytest.approx(ban(0.95).interval[0] * 1.5 - 0.5 - 0.5, abs=0.01)
    assert found["mesa"].margin > 0
    assert "95% of other images to class 1, and 5% to the control class 2" in found["mesa"].statement


def test_a_head_that_was_not_found_says_nothing():
    headless = replace(suspicion(p_value=0.01), class_prior=None)
    assert [e.look for e in weigh((), headless)] == ["lint"]


strengths = st.sampled_from(["strong", "weak", "hint", "none"])
evidence = st.builds(
    Evidence, look=st.just("ban"), strength=strengths, target_class=st.none() | st.integers(0, 2), statement=st.just("")
)


@given(st.lists(evidence, max_size=5), evidence)
def test_more_evidence_never_weakens_a_verdict(found, another):
    before, after = (VERDICTS.index(judge(e).verdict) for e in (found, [*found, another]))
    assert before <= after


@given(st.lists(evidence, max_size=5))
def test_a_suspected_class_is_one_that_the_evidence_names(found):
    given_classes = {e.target_class for e in found if e.strength != "none"}
    assert judge(found).suspected_target_class in given_classes | {None}
