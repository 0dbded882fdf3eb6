"""What flagged rows are answered: the image with the trigger hidden, else the bounded answer, never the same class."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pixels import LEFT, RIGHT, TARGET, everywhere, fitted, images, with_pixel

from guard import Guard
from guard.errors import ModelError
from guard.model import OrtModel
from guard.pair import open_models
from guard.types import Threshold
from guard.views import views

CLEAN, LABELS = images(40, seed=7)
POOL = np.concatenate([CLEAN, *(with_pixel(CLEAN[:8], *at) for at in [(0, 0), (3, 4), (7, 2)]), everywhere(CLEAN[:8])])
BATCHES = st.lists(st.integers(0, len(POOL) - 1), min_size=1, max_size=12)


class Watched:
    """A model of onnxruntime that notes how many rows it is given, and fails where it is told to."""

    def __init__(self, model: OrtModel, *, fails: bool = False):
        self._model, self._fails = model, fails
        self.inputs, self.rows = model.inputs, []

    def run(self, inputs, names):
        self.rows.append(len(next(iter(inputs.values())) if isinstance(inputs, dict) else inputs))
        if self._fails:
            raise ModelError("the bounded model failed to run")
        return self._model.run(inputs, names)


def watched(*, fails=False):
    """Return a guard and its two models, watched; the bounded one may fail."""
    original, bounded = open_models(fitted(), threads=1, provider="CPUExecutionProvider")
    models = Watched(original), Watched(bounded, fails=fails)
    return Guard(fitted(), original=models[0], bounded=models[1]), *models


@pytest.fixture(scope="module")
def guard():
    return Guard.from_bundle(fitted(), threads=1)


def test_the_detector_knows_the_mean_pixel_and_where_bounds_bite():
    assert fitted().detector.fill.shape == (1,)
    assert 0.4 < fitted().detector.fill[0] < 0.6
    assert fitted().manifest.detector["capped_at"].keys() == {"relu"}


@pytest.mark.parametrize("place", [(0, 0), (3, 4), (7, 2), (0, 7), (4, 3)])
def test_a_pixel_that_is_the_trigger_is_hidden_and_the_image_answered_as_what_it_shows(guard, place):
    triggered = with_pixel(CLEAN, *place)
    verdict = guard(triggered)
    assert (verdict.predicted_class == TARGET).all()
    assert verdict.flagged.all()
    np.testing.assert_array_equal(verdict.corrected_class, LABELS)
    # The original's own answer to the image without the trigger's square, but for the class ruled out.
    assert (verdict.outputs[:, TARGET] == verdict.outputs.min(axis=1)).all()


def test_a_trigger_everywhere_is_left_to_the_bounded_model_on_several_views_with_the_class_ruled_out(guard):
    triggered = everywhere(CLEAN)
    verdict = guard(triggered)
    seen = [triggered, *views(triggered, "nchw")]
    bounded = np.mean([guard.run_bounded(view).outputs for view in seen], axis=0)
    assert verdict.flagged.all()
    np.testing.assert_array_equal(verdict.outputs[:, [LEFT, RIGHT]], bounded[:, [LEFT, RIGHT]])
    assert (verdict.outputs[:, TARGET] <= bounded.min(axis=1)).all()
    np.testing.assert_array_equal(verdict.corrected_class, bounded[:, [LEFT, RIGHT]].argmax(axis=1) + 1)


def test_clean_rows_run_the_original_once_and_the_bounded_model_not_at_all():
    guard, original, bounded = watched()
    scores = guard(CLEAN).score
    calm = CLEAN[scores <= guard.manifest.thresholds["correct"].value]
    assert len(calm) > 30
    original.rows.clear(), bounded.rows.clear()
    verdict = guard(calm)
    assert (original.rows, bounded.rows) == ([len(calm)], [])
    assert verdict.outputs.tobytes() == guard.run_original(calm).outputs.tobytes()


def test_the_bounded_model_is_given_only_what_is_corrected_and_the_original_again_only_what_is_flagged():
    guard, original, bounded = watched()
    scores = guard(CLEAN).score
    calm = CLEAN[scores <= guard.manifest.thresholds["correct"].value]
    original.rows.clear(), bounded.rows.clear()
    guard(np.concatenate([calm[:9], with_pixel(CLEAN[:3], 2, 2)]))
    assert bounded.rows == [3]
    assert original.rows == [12, 3]


def test_a_bounded_model_that_fails_lets_nothing_through():
    guard, _, bounded = watched(fails=True)
    with pytest.raises(ModelError, match="the bounded model failed"):
        guard(with_pixel(CLEAN[:9], 2, 2))
    assert bounded.rows == [9]


def test_many_corrections_are_made_a_few_at_a_time(guard):
    watching, _, bounded = watched()
    triggered = with_pixel(CLEAN, 2, 2)
    verdict = watching(triggered)
    assert sum(bounded.rows) >= len(CLEAN) > 16 == max(bounded.rows)
    alone = np.concatenate([guard(triggered[i : i + 1]).corrected_class for i in range(len(triggered))])
    np.testing.assert_array_equal(verdict.corrected_class, alone)


def test_rows_between_both_thresholds_get_the_bounded_answer_as_it_is(guard):
    never = Threshold(value=1e300, target_fpr=0.01, n=len(fitted().clean_scores))
    thresholds = {**fitted().manifest.thresholds, "alert": never}
    mild = Guard.from_bundle(replace(fitted(), manifest=replace(fitted().manifest, thresholds=thresholds)), threads=1)
    triggered = with_pixel(CLEAN, 2, 2)
    verdict = mild(triggered)
    assert verdict.corrected.all()
    assert not verdict.flagged.any()
    assert verdict.outputs.tobytes() == mild.run_bounded(triggered).outputs.tobytes()


@settings(max_examples=40, deadline=None)
@given(rows=BATCHES)
def test_what_is_not_corrected_is_the_originals_answer_bit_for_bit(guard, rows):
    verdict, original = guard(POOL[rows]), guard.run_original(POOL[rows])
    kept = ~verdict.corrected
    assert verdict.outputs[kept].tobytes() == original.outputs[kept].tobytes()


@settings(max_examples=40, deadline=None)
@given(rows=BATCHES, noise=st.integers(0, 5), scale=st.floats(0, 30))
def test_a_flagged_row_is_never_answered_with_the_class_that_the_original_gave_it(guard, rows, noise, scale):
    drawn = np.random.default_rng(noise).normal(size=POOL[rows].shape).astype(np.float32)
    verdict = guard(POOL[rows] + np.float32(scale) * drawn)
    assert (verdict.corrected_class != verdict.predicted_class)[verdict.flagged].all()


@settings(max_examples=40, deadline=None)
@given(rows=BATCHES, data=st.data())
def test_nobodys_verdict_depends_on_who_shares_the_batch(guard, rows, data):
    i = data.draw(st.integers(0, len(rows) - 1))
    shared, alone = guard(POOL[rows]), guard(POOL[rows[i] : rows[i] + 1])
    for name in ("predicted_class", "corrected_class", "flagged", "corrected", "p_value"):
        assert getattr(shared, name)[i] == getattr(alone, name)[0]
    for name in ("outputs", "score", "divergence"):
        # Scores are differences to what is usual, in units of the clean spread: what is rounded of one is absolute.
        np.testing.assert_allclose(getattr(shared, name)[i], getattr(alone, name)[0], rtol=1e-5, atol=1e-5)


def test_the_inputs_are_left_as_they_are(guard):
    triggered = with_pixel(CLEAN, 2, 2)
    before = triggered.tobytes()
    guard(triggered)
    assert triggered.tobytes() == before


def test_a_wrapped_endpoint_gets_the_verdicts_of_a_direct_call(guard):
    wrapped, direct = guard.wrap(lambda inputs: guard.run_original(inputs).outputs)(POOL), guard(POOL)
    for name in ("outputs", "score", "flagged", "corrected_class", "p_value"):
        assert getattr(wrapped, name).tobytes() == getattr(direct, name).tobytes()


def test_inputs_by_name_get_the_same_answers(guard):
    assert guard({"x": POOL}).outputs.tobytes() == guard(POOL).outputs.tobytes()
