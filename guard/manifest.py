"""The manifest of a bundle: what it says, and how it is written and read as JSON. docs/bundle-format.md states it."""

import hashlib
import json
import reprlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, NoReturn, get_args

from guard.errors import BundleError
from guard.json_checks import (
    Check,
    is_classes,
    is_count,
    is_finite,
    is_map,
    is_number,
    is_numbers,
    is_object,
    is_one_of,
    is_rate,
    is_record,
    is_sha256,
    is_shape,
    is_text,
    is_texts,
)
from guard.scores import ONE_PASS, SCORES
from guard.types import TensorSpec, Threshold

__all__ = ["FORMAT_VERSION", "FileDigest", "Manifest", "read_manifest", "write_manifest"]

FORMAT_VERSION = 1

OutputKind = Literal["logits", "probabilities"]


_FLOATS = frozenset({"float16", "float32", "float64"})
_DTYPES = _FLOATS | {"bool"} | {f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}
_OWN_DIGEST = "manifest_sha256"


@dataclass(frozen=True, slots=True, kw_only=True)
class FileDigest:
    """What a file of the bundle must be: its SHA-256 in hexadecimal and its length."""

    sha256: str
    n_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """Everything a bundle says of itself.

    Args:
        format_version: FORMAT_VERSION of the writer.
        model: ``name``, ``sha256`` and ``n_bytes`` of the model file that was guarded.
        files: Every other file of the bundle by name.
        inputs: The original's inputs, one or more.
        output: The original's output (N, C).
        output_kind: Whether that output holds logits or probabilities.
        logits: The graph output of both models that holds logits; None: the logarithm of the probabilities is taken.
        score: The name of the score: a key of guard.scores.SCORES, or one_pass where there is a detector.
        thresholds: ``alert`` and ``correct``.
        preprocessing: How images become inputs: ``scale``, ``mean``, ``std``, ``layout``.
        method: ``name`` and ``settings`` of the way the bounds were learned.
        sites: Per bounded activation ``tensor``, ``function``, ``shape``, ``channel_axis``, ``n_bounds``,
            ``least_bound`` and ``greatest_bound``, and where it is bounded from below too ``n_lower_bounds``,
            ``least_lower_bound`` and ``greatest_lower_bound``.
        calibration: The sizes of the parts, where the labels came from, and what was measured while fitting.
        versions: Of the libraries that wrote the bundle.
        seed: Of everything drawn at random.
        detector: What the one-pass detector reads, by the names of outputs: ``profile`` and ``head`` of the observed
            original, with the ``sites`` of the profile in order; and of the bounded model, by site, ``capped`` (N, K)
            and ``capped_at`` (N, h, w), how far activations went past their bounds. None where the score needs none.
    """

    format_version: int
    model: Mapping[str, Any]
    files: Mapping[str, FileDigest]
    inputs: tuple[TensorSpec, ...]
    output: TensorSpec
    output_kind: OutputKind
    logits: str | None
    score: str
    thresholds: Mapping[str, Threshold]
    preprocessing: Mapping[str, Any]
    method: Mapping[str, Any]
    sites: list[Mapping[str, Any]]
    calibration: Mapping[str, Any]
    versions: Mapping[str, str]
    seed: int
    detector: Mapping[str, Any] | None = None

    @property
    def n_classes(self) -> int:
        """Return C."""
        return int(self.output.shape[1] or 0)


def write_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON: sorted keys, so that equal manifests are equal bytes, and a digest of itself."""
    # What is digested is what a reader will see: keys that are texts, in their order.
    values = json.loads(json.dumps(asdict(manifest), allow_nan=False))
    own = {**values, _OWN_DIGEST: _digest(values)}
    return json.dumps(own, indent=2, sort_keys=True).encode() + b"\n"


def read_manifest(content: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: Not JSON, another format version, altered, a key missing, unknown, or with a value that cannot be.
    """
    try:
        raw = json.loads(content, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"manifest.json is not JSON ({error}); write the bundle again with guard-calibrate fit"
        ) from error
    if not isinstance(raw, dict):
        raise BundleError("manifest.json holds no JSON object; write the bundle again with guard-calibrate fit")
    _check_version(raw.get("format_version"))
    _check_keys(raw)
    own_digest = raw.pop(_OWN_DIGEST)
    for key, (is_right, expected) in _EXPECTED.items():
        if not is_right(raw[key]):
            raise BundleError(
                f"manifest.json: {key} is {reprlib.repr(raw[key])}; it must be {expected}; fit the bundle again"
            )
    if (raw["score"] == ONE_PASS) != (raw["detector"] is not None):
        raise BundleError(f"manifest.json: the score {ONE_PASS} and a detector go together; fit the bundle again")
    _check_own_digest(raw, own_digest)
    return _from_json(raw)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON number")


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"manifest.json has format_version {reprlib.repr(version)}; it must be a whole number")
    if version != FORMAT_VERSION:
        fix = "install a newer Trigger Guard" if version > FORMAT_VERSION else "fit the bundle again"
        raise BundleError(
            f"the bundle has format version {reprlib.repr(version)}; this version reads {FORMAT_VERSION}: {fix}"
        )


def _check_keys(raw: Mapping[str, Any]) -> None:
    expected = {f.name for f in fields(Manifest)} | {_OWN_DIGEST}
    if missing := sorted(expected - raw.keys()):
        raise BundleError(f"manifest.json lacks the key {', '.join(missing)}; fit the bundle again")
    if unknown := sorted(raw.keys() - expected):
        raise BundleError(f"manifest.json has the unknown key {reprlib.repr(unknown[0])}; fit the bundle again")


def _check_own_digest(raw: Mapping[str, Any], own_digest: object) -> None:
    try:
        is_same = _digest(raw) == own_digest
    except (ValueError, RecursionError):  # numbers past a float's range, objects in thousands of objects
        is_same = False
    if not is_same:
        raise BundleError("manifest.json was altered after it was written; restore it or fit the bundle again")


def _digest(values: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True, allow_nan=False).encode()).hexdigest()


def _from_json(raw: Mapping[str, Any]) -> Manifest:
    return Manifest(
        **{
            **raw,
            "files": {name: FileDigest(**digest) for name, digest in raw["files"].items()},
            "inputs": tuple(map(_spec, raw["inputs"])),
            "output": _spec(raw["output"]),
            "thresholds": {name: Threshold(**threshold) for name, threshold in raw["thresholds"].items()},
        }
    )


def _spec(raw: Mapping[str, Any]) -> TensorSpec:
    return TensorSpec(name=raw["name"], dtype=raw["dtype"], shape=tuple(raw["shape"]))


def _are_inputs(value: Any) -> bool:
    if not isinstance(value, list) or not value or not all(map(_is_input, value)):
        return False
    return len({spec["name"] for spec in value}) == len(value)


_UPPER: Mapping[str, Check] = {
    "tensor": is_text,
    "function": is_text,
    "shape": is_shape,
    "channel_axis": is_count,
    "n_bounds": is_count,
    "least_bound": is_finite,
    "greatest_bound": is_finite,
}
_LOWER: Mapping[str, Check] = {
    "n_lower_bounds": is_count,
    "least_lower_bound": is_finite,
    "greatest_lower_bound": is_finite,
}
_is_one_sided, _is_two_sided = is_record(**_UPPER), is_record(**_UPPER, **_LOWER)
_is_input = is_record(name=is_text, dtype=is_one_of(_DTYPES), shape=is_shape)
_is_detector = is_record(
    profile=is_text,
    head=is_text,
    sites=is_texts,
    capped=is_map(is_text),
    capped_at=is_map(is_text),
)
_is_threshold = is_record(value=is_finite, target_fpr=is_rate, n=lambda n: is_count(n) and n > 0)

_EXPECTED: Mapping[str, tuple[Check, str]] = {
    "model": (
        is_record(name=is_text, sha256=is_text, n_bytes=is_count),
        "an object with name, sha256 and n_bytes",
    ),
    "files": (is_map(is_record(sha256=is_sha256, n_bytes=is_count)), "an object of sha256 and n_bytes by name"),
    "inputs": (
        _are_inputs,
        "a list of one object or more, each with a name of its own, a dtype (numeric) and a shape (N, ...)",
    ),
    "output": (
        is_record(name=is_text, dtype=is_one_of(_FLOATS), shape=is_classes),
        "an object with name, dtype (floating) and shape (N, C) of two classes or more",
    ),
    "output_kind": (is_one_of(get_args(OutputKind)), "logits or probabilities"),
    "logits": (lambda value: value is None or isinstance(value, str), "the name of an output, or null"),
    "score": (is_one_of((*SCORES, ONE_PASS)), f"one of {', '.join((*SCORES, ONE_PASS))}"),
    "thresholds": (
        is_record(alert=_is_threshold, correct=_is_threshold),
        "exactly alert and correct, each a finite value, a target_fpr between 0 and 1 and a count n",
    ),
    "preprocessing": (
        is_record(scale=is_number, mean=is_numbers, std=is_numbers, layout=is_one_of(("nchw", "nhwc"))),
        "an object with scale, mean, std (lists of numbers) and layout (nchw or nhwc)",
    ),
    "method": (is_record(name=is_text, settings=is_object), "an object with name and settings"),
    "sites": (
        lambda value: isinstance(value, list) and all(_is_one_sided(site) or _is_two_sided(site) for site in value),
        f"a list of objects with {', '.join(_UPPER)}, all or none of the last three also for lower",
    ),
    "calibration": (is_object, "an object"),
    "versions": (is_map(is_text), "an object of texts"),
    "seed": (is_count, "a whole number from 0"),
    "detector": (
        lambda value: value is None or (_is_detector(value) and value["capped"].keys() == set(value["sites"])),
        "null, or an object with the texts profile and head, sites (a list), capped and capped_at (by site)",
    ),
}
"""What the value of every key must be, and how to say so."""
