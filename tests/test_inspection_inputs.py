"""Inspections take a model with several inputs where they leave its inputs alone, and say so where they cannot."""

import numpy as np
import onnx
import pytest
from texts import save_texts, text_classifier, texts, votes

from calibrate.__main__ import main
from calibrate.graph import find_sites
from calibrate.inspection.ban import BanSettings, detect_ban
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.suspicion import score_channels
from calibrate.sites import RowsInMemory


@pytest.fixture
def problem():
    model, inputs = text_classifier(), texts(60)
    return InspectionProblem(
        model=model,
        logits="logits",
        sites=find_sites(model),
        n_classes=3,
        inputs=RowsInMemory(inputs=inputs),
        labels=votes(inputs).argmax(axis=1),
        seed=0,
        progress=lambda *_: None,
    )


def test_channels_of_a_model_with_several_inputs_are_scored(problem):
    found = score_channels(problem)
    assert found.n_samples == 60
    assert np.isfinite(found.scores["hidden"]).all()
    assert found.scores["hidden"].shape == (3,)


def test_ban_lets_a_model_with_several_inputs_vote(problem):
    settings = BanSettings(seeds=2, noise_steps=3, mask_steps=5, batch_size=32, n_fitting=40)
    found = detect_ban(problem, settings=settings).summary()
    assert (found["n_samples"], [sum(votes) for votes in found["histograms"]]) == (60, [60, 60])


def test_the_inspect_command_says_that_triggers_cannot_be_recovered_and_does_the_rest(tmp_path, capsys):
    onnx.save(text_classifier(), tmp_path / "texts.onnx")
    data = save_texts(tmp_path / "clean.npz", 520)
    assert main(["inspect", str(tmp_path / "texts.onnx"), "--data", str(data), "--depth", "full"]) in (0, 3)
    told = capsys.readouterr().out
    assert "this one has 2 inputs (input_ids, attention_mask)" in told
