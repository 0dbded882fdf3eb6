"""Ports of published detectors on a real backdoored CIFAR-10 model, where it lies beside the repository."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks.baselines import BASELINES, OnnxClassifier
from benchmarks.images import load_images
from calibrate.graph import read_classifier

SHARED = Path(__file__).parents[2] / "shared"
N = 60
pytestmark = pytest.mark.skipif(not (SHARED / "zoo").is_dir(), reason=f"no backdoored models in {SHARED / 'zoo'}")


def auroc(clean, triggered):
    return (triggered[:, None] > clean).mean() + (triggered[:, None] == clean).mean() / 2


@pytest.mark.parametrize("name", ["scale-up", "ted++", "ibd-psc"])
def test_what_papers_report_to_see_badnets_sees_badnets(name):
    found = read_classifier(SHARED / "zoo" / "cifar10-resnet18-badnets.onnx")
    clean, test, triggered = (
        load_images(SHARED / place, found.inputs, limit=limit)
        for place, limit in (
            ("data/cifar10-calibration.tar", 100),
            ("data/cifar10-test.tar", N),
            ("zoo/cifar10-resnet18-badnets-triggered.npz", N),
        )
    )
    classifier = OnnxClassifier(found.model, found.logits)
    scorer = BASELINES[name].fit(classifier, np.asarray(clean[0:100]), clean.labels)
    attacked = triggered.take(np.flatnonzero(triggered.labels != triggered.target_classes))
    assert auroc(scorer(test[0:N]), scorer(attacked[0 : len(attacked)])) > 0.9
