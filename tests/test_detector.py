"""The one-pass score by hand, what is no number past every threshold, and detectors that are none refused."""

import io
from dataclasses import fields

import numpy as np
import pytest
from detectors import detecting_bundle, detector
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from guard import Guard
from guard.bundle import load_bundle
from guard.detector import (
    Standard,
    both_scores,
    head_run,
    one_pass_scores,
    pack_detector,
    profile_distance,
    unpack_detector,
)
from guard.errors import BundleError, InputError, ModelError
from guard.scores import relative_divergence
from guard.types import Answers, Observed

INF, NAN = np.inf, np.nan
WORDS = "is not what a detector needs"


def answers(logits, profile, head):
    """Return an observed original's answers."""
    logits, head = (np.array(rows, dtype=np.float64) for rows in (logits, head))
    observed = Observed(profile=np.array(profile, dtype=np.float32), head=head)
    return Answers(outputs=logits.astype(np.float32), logits=logits, observed=observed)


def test_the_profile_distance_is_mahalanobis_squared():
    one = detector(
        center=np.array([1.0, 0.0]), scale=np.array([1.0, 0.5]), precision=np.array([[2.0, -1.0], [-1.0, 2.0]])
    )
    rows = np.array([[1.0, 0.0], [3.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
    # Standardised: (0, 0), (2, 0), (0, 2), (2, 2).
    np.testing.assert_allclose(profile_distance(rows, one), [0, 8, 8, 8], atol=1e-9)


@pytest.mark.parametrize(
    ("number", "head", "score"),
    [
        (0, [9, 1, 0], -2 / 4),  # nothing lost: the profile's -2 / 4 against the head's -3 / 2
        (4, [9, 1, 0], (16 - 2) / 4),
        (0, [1, 1, 0], (8 - 3) / 2),
        (2, [1, 1, 0], (8 - 3) / 2),
        (0, [4, 1, 0], -2 / 4),  # 5 lost of what leaves 3: 5 / (1 + 3), below what is usual
    ],
)
def test_the_score_is_the_larger_of_both_as_standardised(number, head, score):
    both = detector(profile=Standard(origin=2, spread=4), head=Standard(origin=3, spread=2))
    seen = answers([[9, 1, 0]], [[0, number, 0, 0]], [head])
    np.testing.assert_allclose(one_pass_scores(seen, both), [score], rtol=1e-6)
    np.testing.assert_allclose(np.maximum(*both_scores(seen, both)), [score], rtol=1e-6)


@given(
    bad=st.sampled_from([NAN, INF, -INF]),
    where=st.sampled_from(["profile", "head", "logits"]),
    row=st.integers(0, 4),
    column=st.integers(0, 1),
)
def test_what_is_no_number_is_past_every_threshold_and_spoils_no_other_row(bad, where, row, column):
    rng = np.random.default_rng(0)
    parts = {name: rng.normal(size=(5, 2)) for name in ("logits", "profile", "head")}
    both = detector(center=np.zeros(2), scale=np.ones(2), precision=np.eye(2))
    sound = one_pass_scores(answers(**parts), both)
    parts[where][row, column] = bad
    found = one_pass_scores(answers(**parts), both)
    others = np.arange(5) != row
    assert found[row] == INF
    assert found[others].tobytes() == sound[others].tobytes()
    assert np.isfinite(sound).all()


def test_numbers_too_large_to_square_are_past_every_threshold_without_a_warning():
    tight = detector(scale=np.full(4, 1e-200))
    assert one_pass_scores(answers([[9, 1]], [[3e38] * 4], [[9, 1]]), tight).tolist() == [INF]


def test_answers_that_were_not_observed_are_refused():
    plain = Answers(outputs=np.zeros((1, 2), np.float32), logits=np.zeros((1, 2)))
    for use in (head_run, lambda a: one_pass_scores(a, detector())):
        with pytest.raises(InputError, match=r"take them from Guard\.run_original"):
            use(plain)


def test_the_heads_part_is_the_relative_divergence_to_the_bounded_head():
    seen = answers([[9, 1, 0]], [[0] * 4], [[4, 1, 0]])
    assert relative_divergence(head_run(seen)).tolist() == [5 / 4]


@given(data=st.data(), n_sites=st.integers(1, 4), n_channels=st.integers(0, 3))
def test_a_detector_comes_back_as_it_was_packed(data, n_sites, n_channels):
    numbers, positive = st.floats(-1e300, 1e300), st.floats(1e-300, 1e300)
    n = 4 * n_sites
    shapes = {"center": n, "scale": n, "precision": (n, n), "fill": n_channels}
    drawn = {
        name: data.draw(hnp.arrays(np.float64, shape, elements=positive if name == "scale" else numbers))
        for name, shape in shapes.items()
    }
    standards = {name: Standard(origin=data.draw(numbers), spread=data.draw(positive)) for name in ("profile", "head")}
    whole = detector(**drawn, **standards)
    with np.load(io.BytesIO(pack_detector(whole)), allow_pickle=False) as arrays:
        found = unpack_detector(dict(arrays), n_sites=n_sites)
    for field in fields(whole):
        np.testing.assert_equal(getattr(found, field.name), getattr(whole, field.name))


def wide():
    """Return a detector of two sites."""
    return detector(center=np.zeros(8), scale=np.ones(8), precision=np.eye(8))


def packed(**changes):
    """Return a detector.npz with other arrays; None leaves one out."""
    with np.load(io.BytesIO(pack_detector(detector()))) as arrays:
        kept = {**arrays, **changes}
    buffer = io.BytesIO()
    np.savez(buffer, **{name: values for name, values in kept.items() if values is not None})
    return buffer.getvalue()


def test_a_bundle_with_a_detector_is_loaded_and_guards(tmp_path):
    guard = Guard.load(detecting_bundle(tmp_path), threads=1)
    verdict = guard(np.array([[0, 0, 0], [9, 1, 0]], dtype=np.float32))
    assert verdict.score.tolist() == [0, 81]
    assert verdict.divergence.tolist() == [0, 5]
    assert verdict.flagged.tolist() == [False, True]
    assert verdict.outputs.tolist() == [[0, 0, 0], [0, 1, 0]]


@pytest.mark.parametrize("name", ["center", "scale", "precision", "profile", "head", "fill"])
@pytest.mark.parametrize(
    "spoil",
    [
        lambda values: None,
        lambda values: values.astype(np.float32),
        lambda values: values[..., None],
        lambda values: np.array([*values.ravel(), 1.0]),
        lambda values: np.full_like(values if values.size else np.ones(3), NAN),
        lambda values: np.array([{"a": 1}], dtype=object),
        lambda values: np.array(["a"]),
    ],
    ids=["missing", "float32", "rank", "length", "nan", "pickled", "text"],
)
def test_a_detector_with_a_spoilt_array_is_refused(tmp_path, name, spoil):
    with np.load(io.BytesIO(pack_detector(detector()))) as arrays:
        values = arrays[name]
    folder = detecting_bundle(tmp_path, content=packed(**{name: spoil(values)}))
    with pytest.raises(BundleError, match=WORDS):
        load_bundle(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"scale": np.zeros(4)},
        {"scale": np.array([1.0, 1.0, 1.0, -1.0])},
        {"profile": np.array([1.0, 0.0])},
        {"head": np.array([1.0, -2.0])},
        {"center": np.array([0.0, 0.0, 0.0, INF])},
        {"more": np.zeros(1)},
        {"fill": np.zeros(3)},  # the inputs are no images
    ],
)
def test_a_detector_that_cannot_be_is_refused(tmp_path, changes):
    with pytest.raises(BundleError, match=WORDS):
        load_bundle(detecting_bundle(tmp_path, content=packed(**changes)))


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04", b"\x93NUMPY" + bytes(200), packed()[:-40]])
def test_bytes_that_are_no_detector_are_refused(tmp_path, content):
    with pytest.raises(BundleError, match=WORDS):
        load_bundle(detecting_bundle(tmp_path, content=content))


@pytest.mark.parametrize("outputs", [{"profile": "gone"}, {"head": "gone"}, {"capped_at": {"relu": "gone"}}])
def test_an_output_that_a_model_lacks_is_refused_at_loading(tmp_path, outputs):
    with pytest.raises(BundleError, match="names the output 'gone'"):
        Guard.load(detecting_bundle(tmp_path, **outputs), threads=1)


@pytest.mark.parametrize(
    "outputs",
    [{"profile": "head"}, {"head": "profile"}, {"sites": ["relu", "other"], "capped": {"relu": "y", "other": "y"}}],
)
def test_profiles_and_heads_of_another_shape_let_nothing_through(tmp_path, outputs):
    content = None if "sites" not in outputs else pack_detector(wide())
    guard = Guard.load(detecting_bundle(tmp_path, content=content, **outputs), threads=1)
    with pytest.raises(ModelError, match=r"a model answers with (head|profile) float32 \(1, [34]\); expected floats"):
        guard(np.zeros((1, 3), dtype=np.float32))
