"""Figures by hand, ties included, and none where none can be."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from calibrate.evaluation import Answered, accuracy_drop_limit, auroc, evaluate, least_rows

KEYS = [
    *("n_clean", "n_triggered"),
    *("original_clean_accuracy", "bounded_clean_accuracy", "guarded_clean_accuracy"),
    *("original_attack_success_rate", "bounded_attack_success_rate", "guarded_attack_success_rate"),
    *("guarded_robust_accuracy", "target_fpr", "measured_fpr", "tpr", "auroc"),
]
SCORES = st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0]), min_size=1, max_size=20)

CLEAN = Answered(
    labels=np.array([0, 1, 2, 1]),
    target_classes=None,
    original=np.array([0, 1, 2, 0]),
    bounded=np.array([0, 1, 0, 0]),
    guarded=np.array([0, 1, 2, 1]),
    scores=np.array([0.0, 0.1, 0.2, 0.9]),
    flagged=np.array([False, False, False, True]),
)
"""Of four rows the original gets three right, the bounded model two, the guard all."""

TRIGGERED = Answered(
    labels=np.array([0, 1, 2, 1, 2]),
    target_classes=np.array([0, 0, 0, 0, 0]),
    original=np.array([0, 0, 0, 0, 2]),
    bounded=np.array([0, 0, 2, 1, 2]),
    guarded=np.array([0, 0, 2, 2, 2]),
    scores=np.array([0.0, 0.2, 0.9, 1.0, 0.1]),
    flagged=np.array([True, False, True, True, False]),
)
"""Row 0 is of the target class already; the attack works on rows 1 to 3, and fails on row 4."""


def _without(answered: Answered, **changes) -> Answered:
    return replace(answered, **changes)


def test_clean_figures_are_shares_of_all_clean_rows():
    evaluation = evaluate(CLEAN, None, target_fpr=0.01)
    assert evaluation.n_clean == 4
    assert evaluation.original_clean_accuracy == 0.75
    assert evaluation.bounded_clean_accuracy == 0.5
    assert evaluation.guarded_clean_accuracy == 1.0
    assert (evaluation.target_fpr, evaluation.measured_fpr) == (0.01, 0.25)


def test_attack_figures_leave_out_rows_of_the_target_class():
    evaluation = evaluate(CLEAN, TRIGGERED, target_fpr=0.01)
    assert evaluation.n_triggered == 5
    assert evaluation.original_attack_success_rate == 3 / 4
    assert evaluation.bounded_attack_success_rate == 1 / 4
    assert evaluation.guarded_attack_success_rate == 1 / 4
    assert evaluation.guarded_robust_accuracy == 2 / 4


def test_detection_figures_count_the_rows_on_which_the_attack_works():
    evaluation = evaluate(CLEAN, TRIGGERED, target_fpr=0.01)
    assert evaluation.tpr == 2 / 3
    # .2 beats 0 and .1 and ties with .2; .9 beats three and ties with .9; 1 beats all four.
    assert evaluation.auroc == (2.5 + 3.5 + 4) / 12


def test_the_keys_of_the_json_are_these_and_no_others():
    assert list(asdict(evaluate(CLEAN, TRIGGERED, target_fpr=0.01))) == KEYS


def test_without_triggered_data_nothing_is_said_of_attacks():
    figures = asdict(evaluate(CLEAN, None, target_fpr=0.01))
    assert figures.pop("n_triggered") == 0
    assert [key for key, value in figures.items() if value is None] == [*KEYS[5:9], "tpr", "auroc"]


def test_without_labels_no_clean_accuracy_is_said():
    figures = asdict(evaluate(_without(CLEAN, labels=None), None, target_fpr=0.01))
    assert [figures[key] for key in KEYS[2:5]] == [None] * 3
    assert figures["measured_fpr"] == 0.25


def test_without_labels_every_triggered_row_counts_as_attacked():
    evaluation = evaluate(CLEAN, _without(TRIGGERED, labels=None), target_fpr=0.01)
    assert evaluation.original_attack_success_rate == 4 / 5
    assert evaluation.tpr == 3 / 4
    assert evaluation.guarded_robust_accuracy is None


def test_without_target_classes_only_the_robust_accuracy_is_said():
    evaluation = evaluate(CLEAN, _without(TRIGGERED, target_classes=None), target_fpr=0.01)
    assert evaluation.guarded_robust_accuracy == 3 / 5
    assert evaluation.original_attack_success_rate is None
    assert (evaluation.tpr, evaluation.auroc) == (None, None)


def test_where_the_attack_never_works_nothing_is_said_of_detection():
    evaluation = evaluate(CLEAN, _without(TRIGGERED, original=TRIGGERED.labels), target_fpr=0.01)
    assert evaluation.original_attack_success_rate == 0
    assert (evaluation.tpr, evaluation.auroc) == (None, None)


def test_where_every_row_is_of_the_target_class_nothing_is_said_of_success():
    evaluation = evaluate(CLEAN, _without(TRIGGERED, target_classes=TRIGGERED.labels), target_fpr=0.01)
    assert evaluation.original_attack_success_rate is None
    assert evaluation.guarded_robust_accuracy is None


@given(SCORES, SCORES)
def test_auroc_is_sklearns_ties_included(clean, triggered):
    truth = [0] * len(clean) + [1] * len(triggered)
    assert auroc(np.array(clean), np.array(triggered)) == pytest.approx(roc_auc_score(truth, clean + triggered))


def test_auroc_counts_infinite_scores_as_the_largest():
    assert auroc(np.array([0.0, 1.0]), np.array([np.inf, np.inf])) == 1.0
    assert auroc(np.array([0.0, np.inf]), np.array([np.inf])) == 0.75


def test_auroc_of_no_scores_is_none():
    assert auroc(np.array([]), np.array([1.0])) is None
    assert auroc(np.array([1.0]), np.array([])) is None


def test_the_drop_limit_is_the_mean_difference_plus_its_margin_with_half_a_row_added_to_each_outcome():
    right = np.array([True] * 100)
    bounded = np.array([False] * 10 + [True] * 90)
    expected = 10 / 102 + 1.6448536 * np.sqrt((11 / 102 - (10 / 102) ** 2) / 102)
    assert accuracy_drop_limit(right, bounded, confidence=0.95) == pytest.approx(expected)


def test_rows_that_bounding_sets_right_count_against_those_it_breaks():
    original, bounded = np.array([True, False] * 50), np.array([False, True] * 50)
    assert accuracy_drop_limit(original, bounded, confidence=0.5) == pytest.approx(0)


@pytest.mark.parametrize("n", [15, 53, 1000])
def test_equal_answers_leave_room_for_a_drop_that_shrinks_with_their_number(n):
    right = np.arange(n) % 3 > 0
    assert accuracy_drop_limit(right, right, confidence=0.95) == pytest.approx(1.6448536 / (n + 2))


@given(st.floats(1e-4, 0.999))
def test_the_least_rows_are_the_fewest_that_show_it(allowed):
    n = least_rows(allowed, confidence=0.95)
    same = np.ones(n, dtype=bool)
    assert accuracy_drop_limit(same, same, confidence=0.95) <= allowed * (1 + 1e-9)
    assert n == 1 or accuracy_drop_limit(same[1:], same[1:], confidence=0.95) > allowed * (1 - 1e-9)
