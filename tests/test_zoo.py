"""The guard on real backdoored CIFAR-10 models, where they lie beside the repository."""

import json
import math
from pathlib import Path

import pytest

from calibrate.__main__ import main
from calibrate.graph import find_sites, read_classifier
from calibrate.inspect_pipeline import InspectSettings, inspect_model
from calibrate.inspection.verdict import NO_EVIDENCE, SUSPECTED
from calibrate.preprocessing import Preprocessing

SHARED = Path(__file__).parents[2] / "shared"
LEAST = {
    "badnets": {"auroc": 0.995, "tpr": 0.98, "guarded_robust_accuracy": 0.75},
    "blend": {"auroc": 0.995, "tpr": 0.95, "guarded_robust_accuracy": 0.75},
    "wanet": {"auroc": 0.985, "tpr": 0.94, "guarded_robust_accuracy": 0.75},
    "all2all": {"auroc": 0.99, "tpr": 0.95, "guarded_robust_accuracy": 0.75},
}
MOST = {
    "badnets": {"guarded_attack_success_rate": 0.03, "clean_accuracy_lost": 0.01},
    "blend": {"guarded_attack_success_rate": 0.05, "clean_accuracy_lost": 0.01},
    "wanet": {"guarded_attack_success_rate": 0.05, "clean_accuracy_lost": 0.01},
    "all2all": {"guarded_attack_success_rate": 0.05, "clean_accuracy_lost": 0.012},
}
pytestmark = pytest.mark.skipif(not (SHARED / "zoo").is_dir(), reason=f"no backdoored models in {SHARED / 'zoo'}")


@pytest.mark.parametrize("model", LEAST)
def test_a_real_backdoor_is_flagged_and_corrected(model, tmp_path):
    source = SHARED / "zoo" / f"cifar10-resnet18-{model}.onnx"
    bundle, figures = str(tmp_path / "bundle"), tmp_path / "figures.json"
    calibration, test = (str(SHARED / "data" / f"cifar10-{part}.tar") for part in ("calibration", "test"))
    triggered = str(source.with_name(f"{source.stem}-triggered.npz"))
    # The rate of one threshold by rank strays by .3 points; a certified one keeps what is asserted here.
    options = ["--limit", "2000", "--rule", "certified"]
    assert main(["fit", str(source), "--data", calibration, "--bundle", bundle, *options]) == 0
    arguments = ["--clean", test, "--triggered", triggered, "--json", str(figures)]
    assert main(["evaluate", bundle, *arguments]) == 0
    found = json.loads(figures.read_text())
    assert {key: found[key] for key, least in LEAST[model].items() if found[key] < least} == {}
    assert found["measured_fpr"] <= 0.015
    assert found["original_attack_success_rate"] > 0.7
    found["clean_accuracy_lost"] = found["original_clean_accuracy"] - found["guarded_clean_accuracy"]
    assert {key: found[key] for key, most in MOST[model].items() if found[key] > most} == {}


def test_the_sites_of_a_resnet_are_those_that_unit_and_mmac_bound():
    """17 sites; per channel and per neuron a quarter of what is published for a network four times as wide."""
    sites = find_sites(read_classifier(SHARED / "zoo" / "cifar10-resnet18-badnets.onnx").model)
    n_channels, n_neurons = sum(site.shape[1] for site in sites), sum(math.prod(site.shape[1:]) for site in sites)
    assert (len(sites), 4 * n_channels, 4 * n_neurons) == (17, 3904, 557_056)


@pytest.mark.parametrize(("model", "verdict", "target"), [("badnets", SUSPECTED, 0), ("clean", NO_EVIDENCE, None)])
def test_a_real_model_is_judged_as_measured(model, verdict, target):
    """The form of BAN's mask was chosen on these models; benchmarks/results.md has the ones that are missed."""
    source = SHARED / "zoo" / f"cifar10-resnet18-{model}.onnx"
    settings = InspectSettings(preprocessing=Preprocessing(), limit=1000)
    found = inspect_model(source, SHARED / "data" / "cifar10-calibration.tar", settings, lambda *_: None).verdict
    assert (found.verdict, found.suspected_target_class) == (verdict, target)
