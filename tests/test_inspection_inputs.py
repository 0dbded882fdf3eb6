"""Inspections take a model with several inputs where they leave its inputs alone, and say so where they cannot."""

import numpy as np
import pytest
from texts import text_classifier, texts, votes

from calibrate.graph import find_sites
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
