"""Evidence stays low on clean streams as often as promised, finds floods and tells drift from them."""

import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED
from guards import guard_of
from hypothesis import given, settings
from hypothesis import strategies as st
from streams import N_CLASSES, TARGET, clean, flood, monitor, reference, verdict

from guard.betting import ALARM, BLOCK
from guard.errors import InputError
from guard.monitor import Monitor, Reading, Reference


def fed(found, *verdicts):
    for one in verdicts:
        found.update(one)
    return found.read()


def highest(found, stream, *, step):
    """Return the most of each kind of evidence while a stream is read in steps."""
    readings = []
    for start in range(0, len(stream.score), step):
        part = slice(start, start + step)
        readings.append(fed(found, verdict(stream.score[part], stream.predicted_class[part])))
    return np.max([(r.triggers, r.triggers_by_class.sum(), r.drift) for r in readings], axis=0)


def test_false_alarms_at_any_level_are_as_rare_as_promised_over_calibrations_and_streams():
    rng, n_streams, n_rows, level = np.random.default_rng(0), 200, 1600, 20.0
    peaks = np.array([highest(monitor(rng, 400), clean(rng, n_rows), step=BLOCK * 5) for _ in range(n_streams)])
    # P(evidence >= 20 within 1600 rows) <= .05 * 1.016 for all but 5 % of calibrations: .1 in all, and 3 sd on top.
    assert ((peaks >= level).mean(axis=0) <= 0.1 + 3 * np.sqrt(0.1 * 0.9 / n_streams)).all()


def test_no_alarm_is_raised_by_the_worst_calibrations_that_the_promise_covers():
    rng, bound = np.random.default_rng(1), 1 - 0.05 ** (1 / 400)
    # The largest of 400 scores was as low as in one of 20 draws: every new score is past it that often.
    worst = Reference(scores=np.sort(np.append(rng.random(399) * (1 - bound), 1 - bound)))
    peaks = [highest(Monitor(worst, n_classes=2), verdict(rng.random(2000), [0] * 2000), step=80) for _ in range(50)]
    assert np.max([peak[0] for peak in peaks]) < ALARM


@pytest.mark.parametrize("n_quiet", [0, 20_000])
def test_a_flood_of_one_in_a_hundred_is_found_within_4000_rows(n_quiet):
    found = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        watching = monitor(rng)
        watching.update(clean(rng, n_quiet))
        found.append(highest(watching, flood(rng, 4000, share=0.01), step=400)[0] >= ALARM)
    assert np.mean(found) >= 0.95


def test_the_attacked_class_is_named_and_no_other():
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng), clean(rng, 3000), flood(rng, 2000, share=0.05))
    assert reading.is_attacked
    assert not reading.has_drifted
    assert reading.suspected_target_classes == (TARGET,)


def test_a_flood_is_found_without_the_classes_of_the_reference():
    rng = np.random.default_rng(0)
    plain = replace(reference(rng), predicted_class=None)
    reading = fed(Monitor(plain, n_classes=N_CLASSES), flood(rng, 2000, share=0.05))
    assert reading.suspected_target_classes == (TARGET,)


def test_clean_data_that_score_higher_are_drift_and_no_attack():
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng), verdict(rng.random(4000) ** 0.6, rng.integers(0, N_CLASSES, 4000)))
    assert reading.has_drifted
    assert not reading.is_attacked


def test_clean_data_that_score_lower_are_drift_too():
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng), verdict(rng.random(4000) ** 2, rng.integers(0, N_CLASSES, 4000)))
    assert reading.has_drifted
    assert reading.triggers < 1


def test_triggers_are_no_drift_however_many_they_are():
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng), flood(rng, 8000, share=0.5))
    assert reading.is_attacked
    assert reading.drift < 1


def test_an_attack_on_one_class_shows_beside_drift():
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng), verdict(rng.random(3000) ** 0.7, rng.integers(0, N_CLASSES, 3000)))
    assert not reading.is_attacked
    values = {"n_rows": 1, "triggers": 1e4, "drift": 1e4}
    by_class = np.zeros(N_CLASSES)
    by_class[TARGET] = 1e4
    assert Reading(**values, triggers_by_class=by_class).is_attacked
    assert not Reading(**values, triggers_by_class=np.full(N_CLASSES, 1e4)).is_attacked


def test_rows_that_score_nan_count_as_extreme():
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng), verdict(np.full(320, np.nan), [TARGET] * 320))
    assert reading.suspected_target_classes == (TARGET,)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 1000), cuts=st.lists(st.integers(0, 100), max_size=8))
def test_evidence_does_not_depend_on_how_rows_are_batched(seed, cuts):
    rng = np.random.default_rng(seed)
    stream, known = flood(rng, 100, share=0.2), reference(rng, 100)
    parts = np.split(np.arange(100), sorted(cuts))
    at_once = fed(Monitor(known, n_classes=N_CLASSES), stream)
    apart = fed(
        Monitor(known, n_classes=N_CLASSES), *(verdict(stream.score[p], stream.predicted_class[p]) for p in parts)
    )
    assert (apart.n_rows, apart.triggers, apart.drift) == (at_once.n_rows, at_once.triggers, at_once.drift)
    assert apart.triggers_by_class.tolist() == at_once.triggers_by_class.tolist()


def size_in_bytes(value):
    if isinstance(value, np.ndarray):
        return value.nbytes
    return sys.getsizeof(value) + sum(map(size_in_bytes, getattr(value, "__dict__", {}).values()))


def test_memory_is_of_a_fixed_size():
    rng = np.random.default_rng(0)
    watching = monitor(rng)
    watching.update(clean(rng, BLOCK * 10))
    before = size_in_bytes(watching)
    watching.update(clean(rng, BLOCK * 1000))
    # What waits for its block to fill may be up to one block longer.
    assert abs(size_in_bytes(watching) - before) < BLOCK * 8 < before < 20_000


def test_no_row_is_lost_between_threads():
    rng = np.random.default_rng(0)
    watching, streams = monitor(rng), [flood(rng, 7, share=0.5) for _ in range(200)]
    with ThreadPoolExecutor(8) as threads:
        list(threads.map(watching.update, streams))
    reading = watching.read()
    assert reading.n_rows == 1400
    assert reading.is_attacked


def test_a_reset_forgets_everything():
    rng = np.random.default_rng(0)
    watching = monitor(rng)
    fresh = watching.read()
    watching.update(flood(rng, 1000 + BLOCK // 2, share=0.5))
    watching.reset()
    now = watching.read()
    assert (now.n_rows, now.triggers, now.drift) == (0, fresh.triggers, fresh.drift)
    assert now.triggers_by_class.tolist() == fresh.triggers_by_class.tolist()


def test_evidence_falls_once_an_attack_is_over():
    rng = np.random.default_rng(0)
    watching = monitor(rng)
    assert fed(watching, flood(rng, 5000, share=0.5)).is_attacked
    assert not fed(watching, clean(rng, 20_000)).is_attacked


@pytest.mark.parametrize("n", [1, 2, 9, 79])
def test_a_small_reference_works_and_proves_less(n):
    rng = np.random.default_rng(0)
    reading = fed(monitor(rng, n), clean(rng, 160))
    assert np.isfinite([reading.triggers, reading.drift, *reading.triggers_by_class]).all()
    assert not reading.is_attacked


def test_clean_scores_that_are_all_the_same_raise_no_alarm_by_their_likes():
    watching = Monitor(Reference(scores=np.zeros(500)), n_classes=2)
    reading = fed(watching, verdict(np.zeros(5000), [0] * 5000))
    assert not reading.is_attacked
    assert not reading.has_drifted


def test_no_reference_is_refused():
    with pytest.raises(InputError, match="needs clean scores"):
        Monitor(Reference(scores=np.zeros(0)), n_classes=2)


def test_a_guard_hands_out_a_monitor_of_its_own_verdicts():
    guard = guard_of()
    watching = guard.monitor()
    rows = np.concatenate([CLEAN] * 7 + [TRIGGERED])
    for _ in range(40):
        watching.update(guard(rows))
    assert watching.read().suspected_target_classes == (0,)
