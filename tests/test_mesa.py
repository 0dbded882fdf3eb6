"""MESA finds triggers where there are some, measures them honestly, and refuses what has none."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from digits import TARGET
from onnx import numpy_helper
from torch_models import export

from calibrate.graph import find_sites, read_classifier
from calibrate.inspection.mesa import MesaFindings, MesaSettings, recover_triggers
from calibrate.inspection.mesa_findings import RecoveredTriggers
from calibrate.inspection.problem import InspectionProblem
from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.trigger_places import Places
from calibrate.inspection.triggers import TriggerDistribution
from calibrate.proportions import Proportion
from calibrate.sites import RowsInMemory
from guard.errors import CalibrationError, InputError

PATCH = TriggerKind(family="patch", size=3)
QUICK = MesaSettings(kinds=(PATCH,), betas=(0.9, 0.5), width=64, iterations=150, learning_rate=2e-3)


def problem_of(path, inputs, labels, **changes):
    classifier = read_classifier(path)
    fields = {
        "model": classifier.model,
        "logits": classifier.logits,
        "sites": find_sites(classifier.model),
        "n_classes": classifier.n_classes,
        "inputs": inputs,
        "labels": labels,
        "seed": 0,
        "progress": lambda *_: None,
    }
    return InspectionProblem(**{**fields, **changes})


@pytest.fixture(scope="module")
def problem(digits):
    with np.load(digits.clean) as clean:
        return problem_of(digits.model, clean["inputs"], clean["labels"])


@pytest.fixture(scope="module")
def target(problem):
    return recover_triggers(problem, TARGET, settings=QUICK)


def test_a_planted_patch_is_recovered_at_every_level(target):
    assert [found.distribution.beta for found in target.generators] == [0.5, 0.9]
    assert all(found.kept for found in target.generators)
    assert target.strength > 0.85


def test_a_control_class_is_harder_to_reach(problem, target):
    control = recover_triggers(problem, 4, settings=QUICK)
    assert control.strength < 0.5
    assert target.lead_over(control) > 0.3
    assert control.lead_over(target) < 0


def test_recovered_triggers_differ_from_one_another(target):
    assert min(found.diversity for found in target.generators) > 0.05


def test_the_findings_can_be_written_as_json(target):
    summary = json.loads(json.dumps(target.summary()))
    assert summary["target_class"] == TARGET
    assert summary["n_kept"] == len(target.kept) == 2
    low, high = summary["generators"][0]["asr_interval"]
    assert low < summary["generators"][0]["asr"] < high


def test_channels_may_be_innermost(digits, problem, tmp_path):
    class Innermost(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.network = digits.network

        def forward(self, inputs):
            return self.network(inputs.permute(0, 3, 1, 2))

    example = torch.zeros(2, 8, 8, 1)
    onnx.save(export(Innermost().eval(), example, exporter="torchscript", opset=17), tmp_path / "nhwc.onnx")
    turned = problem_of(tmp_path / "nhwc.onnx", np.moveaxis(problem.inputs, 1, 3), problem.labels)
    found = recover_triggers(turned, TARGET, settings=replace(QUICK, betas=(0.5,)))
    assert found.strength > 0.5
    assert found.generators[0].distribution.channel_axis == 3


def test_there_may_be_more_channels_than_rows(problem):
    model = onnx.ModelProto()
    model.CopyFrom(problem.model)
    name = model.graph.input[0].name
    model.graph.input[0].type.tensor_type.shape.dim[1].dim_value = 16
    for made in model.graph.node:
        made.input[:] = ["mean" if read == name else read for read in made.input]
    model.graph.node.insert(0, onnx.helper.make_node("ReduceMean", [name], ["mean"], axes=[1], keepdims=1))
    wide = replace(problem, model=model, inputs=np.repeat(problem.inputs, 16, axis=1))
    found = recover_triggers(wide, TARGET, settings=replace(QUICK, iterations=2))
    assert found.generators[0].distribution.bank.shape[1:] == (16, 3, 3)


@pytest.mark.parametrize("family", ["blend", "warp"])
def test_the_other_families_are_tried_too(problem, family):
    kind = TriggerKind(family=family, size=4, strength=0.5)
    found = recover_triggers(problem, 1, settings=replace(QUICK, kinds=(kind,), betas=(0.5,), iterations=60))
    (only,) = found.generators
    assert only.asr.share > 0.15
    assert only.distribution.kind == kind


def test_the_official_profile_takes_620_steps_of_3x3_patches_and_levels_as_published():
    settings = MesaSettings.official_code()
    assert settings.iterations == 10 * (8000 // 128) == 620
    assert settings.kinds_for(32, 32) == (PATCH,)
    assert (settings.learning_rate, settings.ema_rate, settings.adam_betas) == (2e-4, 0.001, (0.5, 0.999))
    assert (settings.betas, settings.alpha, settings.batch_size, settings.n_noise) == ((0.9, 0.8, 0.5), 0.1, 128, 64)


def test_the_official_profile_runs_every_step_and_leaves_out_the_last_row_and_column(problem):
    settings = replace(MesaSettings.official_code(), width=16, iterations=4, batch_size=32, betas=(0.9,))
    (found,) = recover_triggers(problem, TARGET, settings=settings).generators
    assert (found.iterations, found.stopped) == (4, "every iteration taken")
    assert found.distribution.places.corners.max() + 3 == 7


def test_the_same_seed_gives_the_same_triggers(problem):
    settings = replace(QUICK, iterations=5, betas=(0.5,))
    banks = [recover_triggers(problem, TARGET, settings=settings).generators[0].distribution.bank for _ in range(2)]
    np.testing.assert_array_equal(*banks)


def test_a_loss_that_is_no_number_ends_the_training_before_that_step(problem):
    broken = onnx.ModelProto()
    broken.CopyFrom(problem.model)
    bias = next(weight for weight in broken.graph.initializer if list(weight.dims) == [10])
    bias.CopyFrom(numpy_helper.from_array(np.full(10, np.nan, dtype=np.float32), bias.name))
    (found,) = recover_triggers(replace(problem, model=broken), TARGET, settings=QUICK).generators
    assert (found.iterations, found.kept) == (0, False)
    trained, located = found.stopped.split("; ")
    assert trained == "the loss or its gradient was NaN or infinite at iteration 1"
    assert located == "the loss of the place or its gradient was NaN or infinite at iteration 1"
    assert np.isfinite(found.distribution.bank).all()


@pytest.mark.parametrize("target_class", [-1, 10])
def test_a_class_that_does_not_exist_is_refused(problem, target_class):
    with pytest.raises(InputError, match="the classes are 0 to 9"):
        recover_triggers(problem, target_class)


def test_too_few_samples_are_refused_with_the_number_missing(problem):
    with pytest.raises(CalibrationError, match=r"499 samples are too few.*1 are missing"):
        recover_triggers(replace(problem, inputs=problem.inputs[:499], labels=problem.labels[:499]), TARGET)


def test_samples_of_the_target_class_alone_are_refused(problem):
    with pytest.raises(CalibrationError, match="only 0 of 700 samples are of other classes than 0"):
        recover_triggers(replace(problem, labels=np.zeros_like(problem.labels)), TARGET)


@pytest.mark.parametrize("n_others", [1, 63])
def test_too_few_samples_of_other_classes_are_refused_with_their_number(problem, n_others):
    labels = np.zeros_like(problem.labels)
    labels[:n_others] = 1
    labels[-1] = 1
    part = rf"only {n_others + 1} of {len(labels)} .*: {n_others} to fit on, of which it takes 64, and 1 to measure"
    with pytest.raises(CalibrationError, match=part):
        recover_triggers(replace(problem, labels=labels), TARGET, settings=QUICK)


def test_a_class_without_samples_can_be_a_target(problem):
    rows = np.flatnonzero(problem.labels != TARGET)
    without = replace(problem, inputs=problem.inputs[rows], labels=problem.labels[rows])
    settings = replace(QUICK, iterations=2, betas=(0.5,))
    assert recover_triggers(without, TARGET, settings=settings).target_class == TARGET


@pytest.mark.parametrize("inputs", [np.zeros((600, 64), np.float32), np.zeros((600, 1, 8, 8), np.int64)])
def test_inputs_that_are_no_float_images_are_refused(problem, inputs):
    with pytest.raises(CalibrationError, match="needs a model with a single input of float images"):
        recover_triggers(replace(problem, inputs=inputs, labels=np.zeros(600, dtype=np.int64)), TARGET)


def test_a_model_with_several_inputs_is_refused(problem):
    inputs = RowsInMemory(inputs={"image": problem.inputs, "mask": problem.inputs})
    with pytest.raises(CalibrationError, match=r"has 2 inputs \(image, mask\)"):
        recover_triggers(replace(problem, inputs=inputs), TARGET)


def test_a_patch_larger_than_the_images_is_refused(problem):
    settings = replace(QUICK, kinds=(TriggerKind(family="patch", size=9),))
    with pytest.raises(CalibrationError, match="patch 9x9 is larger than the images, 8x8"):
        recover_triggers(problem, TARGET, settings=settings)


def test_the_lead_compares_the_best_of_each_kind():
    ours, theirs = findings(90, 30), findings(20, 80)
    assert ours.lead_over(theirs) == pytest.approx(
        Proportion(count=90, n=100).interval()[0] - Proportion(count=80, n=100).interval()[1]
    )


def findings(*counts):
    places = Places(corners=np.zeros((1, 2), dtype=np.int64), weights=np.ones(1))
    generators = tuple(
        RecoveredTriggers(
            distribution=TriggerDistribution(
                kind=PATCH, target_class=0, beta=0.9, alpha=0.1, channel_axis=1, places=places,
                bank=np.zeros((1, 1, 3, 3), dtype=np.float32),
            ),
            asr=Proportion(count=count, n=100), diversity=1.0, kept=True, iterations=1, stopped="",
        )
        for count in counts
    )  # fmt: skip
    return MesaFindings(target_class=0, generators=generators)
