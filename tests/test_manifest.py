"""A manifest comes back as it was written, and whatever it could not have been written as is refused in one line."""

import json
import sys
from dataclasses import fields, replace

import pytest
from bundles import manifest
from hypothesis import example, given
from hypothesis import strategies as st

from guard.errors import BundleError
from guard.manifest import FORMAT_VERSION, FileDigest, Manifest, read_manifest, write_manifest
from guard.types import TensorSpec

FILES = {
    "original.onnx": FileDigest(sha256="ab" * 32, n_bytes=7),
    "report.html": FileDigest(sha256="0" * 64, n_bytes=0),
}
SITE = {
    "tensor": "relu",
    "function": "Relu",
    "shape": [None, 8],
    "channel_axis": 1,
    "n_bounds": 8,
    "least_bound": 0.1,
    "greatest_bound": 2.5,
}
BELOW = {"n_lower_bounds": 8, "least_lower_bound": -0.5, "greatest_lower_bound": -0.1}
WRITTEN = write_manifest(manifest())
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


def altered(*path, value):
    """Return the tiny manifest with another value at a path of keys."""
    raw = json.loads(WRITTEN)
    place = raw
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = value
    return json.dumps(raw).encode()


def refusal(content):
    with pytest.raises(BundleError) as refused:
        read_manifest(content)
    message = str(refused.value)
    assert "\n" not in message
    assert len(message) < 400
    return message


def test_a_manifest_comes_back_equal():
    full = replace(
        manifest(),
        files=FILES,
        inputs=(TensorSpec(name="x", dtype="uint8", shape=(None, 3, None)),),
        output_kind="probabilities",
        logits=None,
        sites=[SITE, {**SITE, **BELOW}],
        calibration={"accuracy": 0.1 + 0.2, "labels": None, "größe": {"10": 1, "9": [1e-300, -0.0]}},
    )
    assert read_manifest(write_manifest(full)) == full


def test_equal_manifests_are_equal_bytes_in_whatever_order_they_were_made():
    forth = replace(manifest(), files=FILES, versions={"a": "1", "b": "2"})
    back = replace(manifest(), files=dict(reversed(FILES.items())), versions={"b": "2", "a": "1"})
    assert write_manifest(forth) == write_manifest(back)


@given(settings=st.dictionaries(st.text(max_size=5), JSON, max_size=4))
def test_whatever_json_a_manifest_holds_is_written_and_read_the_same(settings):
    full = replace(manifest(), calibration=settings)
    content = write_manifest(full)
    assert read_manifest(content) == full
    assert write_manifest(read_manifest(content)) == content


def test_keys_that_are_numbers_are_written_as_the_texts_they_are_read_as():
    read = read_manifest(write_manifest(replace(manifest(), calibration={10: "ten", 9: "nine"})))
    assert read.calibration == {"10": "ten", "9": "nine"}


def read_or_refused(content):
    try:
        return read_manifest(content)
    except BundleError:
        return None


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_numbers_that_json_lacks_are_not_written(value):
    with pytest.raises(ValueError, match="JSON"):
        write_manifest(replace(manifest(), calibration={"fpr": value}))


@pytest.mark.parametrize(
    "content",
    [
        b"", b"{", b"\x00\x01", b"\xff\xfe", "{é".encode("latin-1"), b"{'format_version': 1}", WRITTEN[:-9],
        WRITTEN + b"}",
        b'{"format_version": NaN}', b"Infinity", b"1" * 5000, b"[" * 100_000, b'{"a":' * 100_000,
    ],
)  # fmt: skip
def test_what_is_no_json_is_refused(content):
    assert "manifest.json is not JSON" in refusal(content)


@pytest.mark.parametrize("content", [b"[]", b"null", b"1", b'"text"', b"true"])
def test_json_that_is_no_object_is_refused(content):
    assert "holds no JSON object" in refusal(content)


@pytest.mark.parametrize("version", ["1", True, 1.0, None, [], {}, [[1]]])
def test_a_version_that_is_no_whole_number_is_refused(version):
    assert "it must be a whole number" in refusal(altered("format_version", value=version))


@pytest.mark.parametrize(("version", "fix"), [(2, "install a newer"), (10**4000, "newer"), (0, "fit"), (-1, "fit")])
def test_another_version_is_refused_with_the_way_out_whatever_else_it_holds(version, fix):
    assert fix in refusal(json.dumps({"format_version": version, "new": "idea"}).encode())
    assert FORMAT_VERSION == 1


@pytest.mark.parametrize("key", sorted(json.loads(WRITTEN)))
def test_a_missing_key_is_named(key):
    raw = json.loads(WRITTEN)
    del raw[key]
    message = refusal(json.dumps(raw).encode())
    assert key in message


@pytest.mark.parametrize("key", ["extra", "", "a\nb", "x" * 10_000])
def test_an_unknown_key_is_refused(key):
    assert "has the unknown key" in refusal(altered(key, value=1))


@pytest.mark.parametrize("key", sorted({f.name for f in fields(Manifest)} - {"format_version"}))
@pytest.mark.parametrize("value", [5.5, -1, True, ["a\nb"], [[[]] * 99] * 99])
def test_a_value_of_the_wrong_form_is_refused_with_its_key(key, value):
    assert refusal(altered(key, value=value)).startswith(f"manifest.json: {key} is ")


WRONG = [
    (("model", "name"), [None, 5]),
    (("model", "more"), [1]),
    (("files",), [{"original.onnx": "ab" * 32}, {"original.onnx": {"sha256": "ab" * 32}}]),
    (("files",), [{"a": {"sha256": "ab" * 32, "n_bytes": n}} for n in (-1, 1.0, "1", True, None)]),
    (("files",), [{"a": {"sha256": sha, "n_bytes": 1}} for sha in ("AB" * 32, "ab" * 31, "ab" * 32 + "\n", None, [])]),
    (("files",), [{"a": {"sha256": "ab" * 32, "n_bytes": 1, "more": 1}}]),
    (("inputs", 0, "dtype"), ["object", "O", "<f4", "float", "str", "V8", "datetime64[s]", "", 5, None, [], {}]),
    (("output", "dtype"), ["int64", "bool", "object", None]),
    (("inputs", 0, "name"), [None, 5, []]),
    (("inputs", 0, "shape"), [[], "3", 3, None, {}, [None, "3"], [None, 0], [None, -1], [None, 3.0], [None, True]]),
    (("inputs", 0, "shape"), [[[3]]]),
    (("inputs",), [[], {}, None, [{}], [{"name": "x", "dtype": "int8", "shape": [None]}] * 2]),
    (("output", "shape"), [[None], [None, 1], [None, None], [None, "3"], [None, 3, 1], [None, True]]),
    (("inputs", 0, "more"), [1]),
    (("output_kind",), ["LOGITS", "", None, ["logits"], {"logits": 1}]),
    (("logits",), [5, False, ["y"], {}]),
    (("score",), ["unknown", "", None, 5, ["divergence"], {"divergence": 1}]),
    (("thresholds", "third"), [{"value": 1.0, "target_fpr": 0.1, "n": 9}]),
    (("thresholds",), [{}, {"alert": {"value": 1.0, "target_fpr": 0.1, "n": 9}}, []]),
    (("thresholds", "alert", "value"), ["1", None, True, 1, [1.0]]),
    (("thresholds", "alert", "target_fpr"), [0.0, 1.0, -0.1, 2.0, 1, "0.1", None]),
    (("thresholds", "correct", "n"), [0, -1, 1.0, True, "9", None]),
    (("thresholds", "correct", "more"), [1]),
    (("method", "settings"), [None, []]),
    (("sites",), [{}, [1], ["a"], None, [{}], [{**SITE, "n_bounds": "8"}], [{**SITE, "more": 1}],
                  [{**SITE, "n_lower_bounds": 8}], [{**SITE, **BELOW, "least_lower_bound": "0"}]]),
    (("preprocessing",), [{}, None, {"scale": 255.0}]),
    (("preprocessing", "mean"), [[], 0.5, ["0"], [True]]),
    (("preprocessing", "layout"), ["hwc", None, ["nchw"]]),
    (("versions",), [{"numpy": 2}, []]),
    (("seed",), [-1, 1.0, True, "0", None]),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value"), [(path, value) for path, values in WRONG for value in values])
def test_a_value_that_cannot_be_is_refused_with_its_key(path, value):
    message = refusal(altered(*path, value=value))
    assert message.startswith(f"manifest.json: {path[0]} is ")
    assert "it must be" in message


@pytest.mark.parametrize("value", ["1e999", "-1e999"])
def test_a_threshold_past_the_range_of_floats_is_refused(value):
    content = altered("thresholds", "alert", "value", value=0.125).replace(b"0.125", value.encode())
    assert "thresholds is" in refusal(content)


@pytest.mark.parametrize("path", [("thresholds", "alert", "value"), ("thresholds", "correct", "target_fpr")])
def test_a_possible_value_that_was_not_the_one_written_is_refused(path):
    assert "altered after it was written" in refusal(altered(*path, value=0.5))


@pytest.mark.parametrize("digest", [None, "", 5, "0" * 64, ["0" * 64]])
def test_a_digest_that_is_not_the_manifests_is_refused(digest):
    assert "altered after it was written" in refusal(altered("manifest_sha256", value=digest))


def test_numbers_that_could_not_have_been_written_are_refused():
    refusal(altered("calibration", value={"a": "here"}).replace(b'"here"', b"1e999"))


def test_objects_in_objects_are_refused_however_deep_they_are():
    # Somewhere near the limit they can be read, but no longer written to take their digest.
    content = altered("calibration", value={"a": "here"})
    for depth in range(sys.getrecursionlimit() - 200, sys.getrecursionlimit() + 10):
        refusal(content.replace(b'"here"', b'{"a":' * depth + b"1" + b"}" * depth))


@given(value=JSON, path=st.sampled_from([p for p, _ in WRONG] + [(f.name,) for f in fields(Manifest)]))
def test_any_value_in_any_place_is_refused_or_the_one_that_was_there(value, path):
    assert read_or_refused(altered(*path, value=value)) in (manifest(), None)


@given(position=st.integers(0, len(WRITTEN) - 1), byte=st.integers(0, 255))
@example(position=0, byte=0)
def test_no_byte_can_be_changed_unnoticed(position, byte):
    content = WRITTEN[:position] + bytes([byte]) + WRITTEN[position + 1 :]
    assert read_or_refused(content) in (manifest(), None)


@given(content=st.binary(max_size=60))
def test_any_bytes_at_all_are_refused(content):
    refusal(content)
