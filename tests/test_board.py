"""The scoreboard's arithmetic, on scores whose rates are known."""

from dataclasses import replace

import numpy as np
import pytest

from benchmarks.board.cell import Cell, area, load_cell, rates, save_cell
from benchmarks.board.goals import goals
from benchmarks.board.plots import draw
from benchmarks.board.tables import certified, der, marginal, tables

ANSWERS = {"accuracy": 0.8, "guarded_accuracy": 0.79, "fpr": 0.01, "asr": 1.0, "guarded_asr": 0.1,
           "robust_accuracy": 0.7, "tpr": 1.0}  # fmt: skip
PERFECT = Cell(
    clean_scores=np.linspace(0, 1, 4000),
    triggered_scores=np.full(50, 2.0),
    passes=1.0,
    ms=1.0,
    fit_s=1.0,
    n_thresholds=1100,
    answers=ANSWERS,
)
BLIND = replace(PERFECT, triggered_scores=np.linspace(0, 1, 1000), answers={})
BOARD = {"cifar10-resnet18-badnets": {"auto, 200": PERFECT, "auto, 50": PERFECT, "auto, 2000": PERFECT, "strip": BLIND}}


def test_what_lies_above_all_clean_scores_is_always_flagged():
    assert rates(PERFECT, "rank", 110, target=0.01).tpr == 1
    assert area(PERFECT) == 1


def test_what_scores_like_clean_data_is_flagged_as_often():
    found = marginal(BLIND)
    assert found.tpr == pytest.approx(0.01, abs=0.005)
    assert found.low <= found.fpr <= found.high
    assert area(BLIND) == pytest.approx(0.5, abs=0.01)


def test_a_certified_threshold_keeps_its_rate_in_nearly_all_splits_and_a_marginal_one_in_about_half():
    assert certified(PERFECT, 0.01, 1100).kept >= 0.95
    assert rates(PERFECT, "rank", 110, target=0.01).kept < 0.95


def test_a_certificate_takes_as_many_images_again_to_be_tested_on():
    assert certified(PERFECT, 0.001, 3000) is None


def test_der_counts_what_attack_and_accuracy_lose():
    assert der(ANSWERS) == pytest.approx((0.9 - 0.01 + 1) / 2)
    assert der({**ANSWERS, "guarded_accuracy": 0.9}) == pytest.approx((0.9 + 1) / 2)


def test_a_cell_is_read_back_as_it_was_saved(tmp_path):
    assert load_cell(tmp_path / "cell") is None
    save_cell(tmp_path / "cell", PERFECT)
    found = load_cell(tmp_path / "cell")
    assert found.answers == ANSWERS
    assert found.clean_scores.tolist() == PERFECT.clean_scores.tolist()


def test_misses_are_bold_and_goals_say_met_or_missed():
    page = "\n".join(tables(BOARD, ["auto, 200", "auto, 50", "auto, 2000", "strip"]))
    assert "| badnets | patch | 1.0000 | 1.0000 | 1.0000 | **0.5000** |" in page
    assert "| 200 images: mean AUROC >= .995 | 1.0000 | met |" in page
    assert "| guarded: mean ASR <= .02 | 0.100 | **missed** |" in page


def test_an_attack_that_hardly_works_counts_in_no_goal():
    weak = {name: replace(cell, answers={**ANSWERS, "asr": 0.2}) for name, cell in BOARD[next(iter(BOARD))].items()}
    page = "\n".join(goals({next(iter(BOARD)): weak}, list(BOARD)))
    assert "over 0 attacks" in page
    assert "Not counted" in page


def test_the_pictures_are_drawn(tmp_path):
    draw(BOARD, ["auto, 200", "strip"], tmp_path / "board")
    assert sorted(p.name for p in tmp_path.iterdir()) == [f"board-{n}.svg" for n in ("cost", "map", "roc")]
