"""The checks of a report: what each of them fails on, in words, and that warnings are exactly the failures."""

from dataclasses import replace

import numpy as np
import pytest
from bundles import manifest
from findings import CALIBRATION, N, detecting, findings_of, manifest_of

from calibrate.estimation import TprEstimation
from calibrate.report import render_report
from calibrate.report_checks import checks_of, warnings_of
from calibrate.thresholds import RULES


def failed(found_manifest, findings) -> list[str]:
    return [check.name for check in checks_of(found_manifest, findings) if not check.passed]


def measured(**changes):
    found = findings_of()
    return replace(found, held_out=replace(found.held_out, **changes))


def test_nothing_is_warned_of_where_all_is_well():
    assert list(warnings_of(manifest_of(), findings_of())) == []
    assert "All 8 checks of this report passed" in render_report(manifest_of(), findings_of()).decode()


def test_the_page_says_every_warning_and_which_checks_failed():
    found = findings_of(n_flagged=10, skipped=["a.png"])
    page = render_report(manifest_of(), found).decode()
    assert "2 of 8 checks of this report failed" in page
    assert page.count("<span class='mark failed'>") == 2
    assert all(warning in page for warning in warnings_of(manifest_of(), found))


def test_more_false_alarms_than_chance_allows_are_warned_of_with_their_interval():
    (warning,) = warnings_of(manifest_of(), findings_of(n_flagged=10))
    assert warning.startswith("10 of 100 held-out clean inputs were flagged")
    assert "(95 % interval 5.52% to 17.44%)" in warning


def test_a_threshold_that_rests_on_one_score_is_warned_of():
    cuts = {name: replace(cut, n=99) for name, cut in manifest().thresholds.items()}
    cuts["alert"] = replace(cuts["alert"], value=1.0)
    (warning,) = warnings_of(manifest_of(thresholds=cuts), findings_of(clean_scores=np.linspace(0, 1, 99)))
    # The greatest of 99 scores is exceeded at a rate below 1 - .05 ** (1 / 99) with 95 % confidence.
    assert warning.startswith("The alert threshold is the greatest of 99 clean scores")
    assert f"{1 - 0.05 ** (1 / 99):.2%}" in warning


def test_a_threshold_of_fewer_scores_than_its_rule_takes_is_warned_of():
    cuts = {name: replace(cut, n=98) for name, cut in manifest().thresholds.items()}
    (warning,) = warnings_of(manifest_of(thresholds=cuts), findings_of())
    assert warning == (
        "The alert threshold rests on 98 clean scores; 1.00% takes"
        f" {RULES['rank'].required(0.01)}: give more clean samples."
    )


def test_rates_that_are_names_are_warned_of():
    (warning,) = warnings_of(manifest_of(calibration={**CALIBRATION, "rule": "mmdf"}), findings_of())
    assert "names, not promises" in warning


@pytest.mark.parametrize(("n_lost", "is_told"), [(0, False), (5, False), (12, True)])
def test_bounds_that_cost_more_accuracy_than_is_allowed_are_warned_of(n_lost, is_told):
    told = list(warnings_of(manifest_of(), measured(bounded_clean_accuracy=1 - n_lost / N)))
    assert len([w for w in told if "of accuracy on the held-out set, more than the 3.0%" in w]) == is_told


@pytest.mark.parametrize(("n_lost", "is_told"), [(1, False), (8, False), (15, True)])
def test_answers_lost_beyond_false_alarms_are_warned_of(n_lost, is_told):
    told = list(warnings_of(manifest_of(), measured(guarded_clean_accuracy=1 - n_lost / N)))
    assert len([w for w in told if "more than the 4.0% that false alarms" in w]) == is_told


def test_a_model_that_disagrees_with_the_labels_is_warned_of():
    assert failed(manifest_of(), measured(original_clean_accuracy=0.3)) == [
        "Were labels given, and are they the model's?"
    ]


def test_bounds_of_which_none_passed_are_warned_of():
    by_none = {"name": "unit-published", "settings": {"n_passed": 0, "step": 300}}
    assert "No bounds passed validation" in "".join(warnings_of(manifest_of(method=by_none), findings_of()))
    of_sigma = {"name": "mmac", "settings": {"n_passed": 0, "step": 0}}
    assert "No bounds passed validation" not in "".join(warnings_of(manifest_of(method=of_sigma), findings_of()))


def test_missing_labels_and_skipped_images_are_warned_of():
    unlabelled = manifest_of(calibration={**CALIBRATION, "labels": "predicted by the original"})
    labels, images = warnings_of(unlabelled, findings_of(skipped=["a.png", "b.png"]))
    assert labels.startswith("No labels were given")
    assert images.startswith("2 images could not be read and were skipped, such as a.png")


def test_what_is_not_guarded_is_warned_of():
    output, activations = warnings_of(manifest_of(), findings_of(dropped_outputs=["features"], unranked=["a", "b"]))
    assert output.startswith("The model's output 'features' is dropped")
    assert activations.startswith("2 activations are not bounded, such as 'a'")


def test_bounds_whose_learning_broke_off_are_warned_of():
    broken = manifest_of(method={"name": "mmac", "settings": {"stopped": "the loss was nan at step 3"}})
    (warning,) = warnings_of(broken, findings_of())
    assert warning == "Learning the bounds stopped early: the loss was nan at step 3. The last good ones were kept."


@pytest.mark.parametrize("value", [-1.0, 0.0, 1e-7])
def test_a_threshold_that_is_no_more_than_rounding_is_warned_of(value):
    thresholds = manifest().thresholds
    touched = manifest_of(thresholds={**thresholds, "alert": replace(thresholds["alert"], value=value)})
    (warning,) = warnings_of(touched, findings_of())
    assert "no more than rounding" in warning


def test_bounds_that_nothing_touches_are_warned_of():
    (warning,) = warnings_of(detecting("a", "b"), findings_of(capped=[0, 0]))
    assert warning.startswith("No held-out input touches any bound")
    assert list(warnings_of(detecting("a", "b"), findings_of(capped=[0, 3]))) == []
    said = {check.name: check.words for check in checks_of(detecting("a", "b"), findings_of(capped=[0, 3]))}
    assert said["Do the bounds act at all?"].startswith("Held-out inputs touch bounds at 1 of 2 sites; at the other 1")


def test_an_estimate_that_was_asked_for_and_not_made_is_warned_of():
    none = TprEstimation(target_class=None, is_given=False, recovered=None, estimates=(), examples=np.zeros(0))
    assert failed(manifest_of(), findings_of(estimation=none)) == ["Is there an estimate of what is caught?"]
    assert "no more than no evidence" in render_report(manifest_of(), findings_of(estimation=none)).decode()
