"""Trigger distributions: sampled, put on inputs, saved and loaded, and refused where a file is none."""

import json

import numpy as np
import pytest

from calibrate.inspection.trigger_families import TriggerKind
from calibrate.inspection.trigger_places import Places
from calibrate.inspection.triggers import TriggerDistribution, load_triggers, save_triggers
from guard.errors import InputError

ORIGIN = {
    "kind": {"family": "patch", "size": 2, "strength": 1.0},
    "target_class": 3,
    "beta": 0.9,
    "alpha": 0.1,
    "channel_axis": 1,
}
PLACES = {"corners_0": np.zeros((1, 2), dtype=np.int64), "weights_0": np.ones(1)}
BANK = np.full((5, 3, 2, 2), 2, dtype=np.float32)


def distribution(family="patch", size=2, strength=1.0, channel_axis=1, bank=BANK):
    kind = TriggerKind(family=family, size=size, strength=strength)
    places = Places(corners=np.array([[0, 4], [3, 1]]), weights=np.array([0.5, 0.5]))
    return TriggerDistribution(
        kind=kind, target_class=3, beta=0.9, alpha=0.1, channel_axis=channel_axis, places=places, bank=bank
    )


def write(path, *, version=1, origins=(ORIGIN,), **arrays):
    origin = json.dumps({"format_version": version, "distributions": list(origins)})
    np.savez(path, origin=np.array(origin), **{**PLACES, **arrays})
    return path


@pytest.mark.parametrize("channel_axis", [1, 3])
def test_triggers_go_on_inputs_of_either_layout(channel_axis):
    inputs = np.zeros((4, 3, 6, 6) if channel_axis == 1 else (4, 6, 6, 3), dtype=np.float32)
    triggers = distribution(channel_axis=channel_axis)
    rng = np.random.default_rng(0)
    triggered = triggers.apply(inputs, triggers.sample(4, rng), rng)
    assert triggered.shape == inputs.shape
    assert ((triggered == 2).sum(axis=(1, 2, 3)) == 3 * 2 * 2).all()
    assert not inputs.any()


def test_triggered_inputs_keep_their_type():
    triggers, rng = distribution(), np.random.default_rng(0)
    assert triggers.apply(np.zeros((1, 3, 6, 6), np.float16), triggers.sample(1, rng), rng).dtype == np.float16


@pytest.mark.parametrize("shape", [(4, 1, 6, 6), (4, 3, 4, 6), (3, 3, 6, 6)])
def test_triggers_that_do_not_fit_the_inputs_are_refused(shape):
    triggers, rng = distribution(), np.random.default_rng(0)
    with pytest.raises(InputError, match="do not fit"):
        triggers.apply(np.zeros(shape, dtype=np.float32), triggers.sample(4, rng), rng)


def test_what_is_saved_is_loaded(tmp_path):
    saved = [
        distribution(),
        distribution("blend", 4, 0.1, 3, np.random.default_rng(0).random((2, 3, 4, 3), dtype=np.float32)),
        distribution("warp", 4, 0.05, 1, np.zeros((3, 2, 4, 4), dtype=np.float32)),
    ]
    save_triggers(tmp_path / "triggers.npz", saved)
    for before, after in zip(saved, load_triggers(tmp_path / "triggers.npz"), strict=True):
        assert (before.kind, before.target_class, before.beta) == (after.kind, after.target_class, after.beta)
        np.testing.assert_array_equal(before.bank, after.bank)
        np.testing.assert_array_equal(before.places.corners, after.places.corners)


def test_the_same_triggers_are_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        save_triggers(tmp_path / name, [distribution()])
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match="cannot write"):
        save_triggers(tmp_path / "file" / "triggers.npz", [distribution()])


@pytest.mark.parametrize(
    ("arrays", "reason"),
    [
        ({}, "describes 1 distributions but holds"),
        ({"bank_0": BANK, "bank_1": BANK}, "describes 1 distributions but holds"),
        ({"bank_0": BANK.astype(np.float64)}, "none of a patch"),
        ({"bank_0": BANK[0]}, "none of a patch"),
        ({"bank_0": BANK[:0]}, "none of a patch"),
        ({"bank_0": BANK[..., :1]}, "none of a patch"),
        ({"bank_0": BANK * np.float32("nan")}, "NaN"),
        ({"bank_0": BANK, "weights_0": np.ones(2)}, "places"),
        ({"bank_0": BANK, "weights_0": np.zeros(1)}, "places"),
        ({"bank_0": BANK, "corners_0": np.full((1, 2), -1)}, "places"),
        ({"bank_0": BANK, "corners_0": np.zeros((1, 2))}, "places"),
        ({"bank_0": np.array([None])}, "no file of recovered triggers"),
        ({"bank_0": BANK, "version": 2}, "format version"),
        ({"bank_0": BANK, "origins": [{**ORIGIN, "beta": 2}]}, "not known here"),
        ({"bank_0": BANK, "origins": [{**ORIGIN, "more": 2}]}, "not known here"),
        ({"bank_0": BANK, "origins": [{**ORIGIN, "kind": {"family": "x", "size": 2, "strength": 1.0}}]}, "not known"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused(arrays, reason, tmp_path):
    with pytest.raises(InputError, match=reason):
        load_triggers(write(tmp_path / "triggers.npz", **arrays))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"text", b"\x93NUMPY\x01\x00"])
def test_a_file_of_another_kind_is_refused(content, tmp_path):
    (tmp_path / "triggers.npz").write_bytes(content)
    with pytest.raises(InputError, match="no file of recovered triggers"):
        load_triggers(tmp_path / "triggers.npz")


def test_a_file_with_a_damaged_byte_is_refused(tmp_path):
    save_triggers(tmp_path / "triggers.npz", [distribution()])
    content = bytearray((tmp_path / "triggers.npz").read_bytes())
    place = content.index(b"bank_0.npy") + 40
    for damaged in range(place, place + 40):
        changed = content.copy()
        changed[damaged] ^= 0xFF
        (tmp_path / "triggers.npz").write_bytes(changed)
        with pytest.raises(InputError, match="no file of recovered triggers"):
            load_triggers(tmp_path / "triggers.npz")


def test_a_plain_array_is_refused(tmp_path):
    np.save(tmp_path / "triggers.npy", BANK)
    with pytest.raises(InputError, match="no file of recovered triggers"):
        load_triggers(tmp_path / "triggers.npy")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        load_triggers(tmp_path / "triggers.npz")
