"""The manifest of a bundle: what it says, and how it is written and read as JSON. docs/bundle-format.md states it."""

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

import numpy as np

from guard.errors import BundleError
from guard.scores import SCORES
from guard.types import TensorSpec, Threshold

__all__ = ["FORMAT_VERSION", "FileDigest", "Manifest", "read_manifest", "write_manifest"]

FORMAT_VERSION = 1

OutputKind = Literal["logits", "probabilities"]


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
        input: The original's input.
        output: The original's output (N, C).
        output_kind: Whether that output holds logits or probabilities.
        logits: The graph output of both models that holds logits; None: the logarithm of the probabilities is taken.
        score: The name of the score, a key of guard.scores.SCORES.
        thresholds: ``alert`` and ``correct``.
        preprocessing: How images become inputs: ``scale``, ``mean``, ``std``, ``layout``.
        method: ``name`` and ``settings`` of the way the bounds were learned.
        sites: Per bounded activation ``tensor``, ``function``, ``shape``, ``channel_axis``, ``granularity``, and the
            least and greatest bound.
        calibration: The sizes of the parts, where the labels came from, and what was measured while fitting.
        versions: Of the libraries that wrote the bundle.
        seed: Of everything drawn at random.
    """

    format_version: int
    model: Mapping[str, Any]
    files: Mapping[str, FileDigest]
    input: TensorSpec
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

    @property
    def n_classes(self) -> int:
        """Return C."""
        return int(self.output.shape[1] or 0)


def write_manifest(manifest: Manifest) -> bytes:
    """Return the manifest as JSON: sorted keys, so that equal manifests are equal bytes."""
    return json.dumps(asdict(manifest), indent=2, sort_keys=True, allow_nan=False).encode() + b"\n"


def read_manifest(content: bytes) -> Manifest:
    """Parse and check a manifest.

    Raises:
        BundleError: Not JSON, another format version, a key missing, unknown, or with a value that cannot be.
    """
    try:
        raw = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise BundleError(
            f"manifest.json is not JSON ({error}); write the bundle again with guard-calibrate fit"
        ) from error
    if not isinstance(raw, dict):
        raise BundleError("manifest.json holds no JSON object; write the bundle again with guard-calibrate fit")
    _check_version(raw.get("format_version"))
    _check_keys(raw)
    try:
        manifest = _from_json(raw)
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise BundleError(
            f"manifest.json holds a value of the wrong form ({error}); see docs/bundle-format.md"
        ) from error
    _check_values(manifest)
    return manifest


def _check_version(version: object) -> None:
    if not isinstance(version, int) or isinstance(version, bool):
        raise BundleError(f"manifest.json has format_version {version!r}; it must be a whole number")
    if version != FORMAT_VERSION:
        fix = "install a newer Trigger Guard" if version > FORMAT_VERSION else "fit the bundle again"
        raise BundleError(f"the bundle has format version {version}; this version reads {FORMAT_VERSION}: {fix}")


def _check_keys(raw: dict[str, Any]) -> None:
    expected = {f.name for f in fields(Manifest)}
    if missing := sorted(expected - raw.keys()):
        raise BundleError(f"manifest.json lacks the key {', '.join(missing)}; fit the bundle again")
    if unknown := sorted(raw.keys() - expected):
        raise BundleError(f"manifest.json has the unknown key {', '.join(unknown)}; fit the bundle again")


def _from_json(raw: dict[str, Any]) -> Manifest:
    return Manifest(
        **{
            **raw,
            "files": {name: FileDigest(**digest) for name, digest in raw["files"].items()},
            "input": _spec(raw["input"]),
            "output": _spec(raw["output"]),
            "thresholds": {name: Threshold(**threshold) for name, threshold in raw["thresholds"].items()},
        }
    )


def _spec(raw: dict[str, Any]) -> TensorSpec:
    np.dtype(raw["dtype"])
    return TensorSpec(**{**raw, "shape": tuple(raw["shape"])})


def _check_values(manifest: Manifest) -> None:
    problems = {
        f"output_kind is {manifest.output_kind!r}, not logits or probabilities": manifest.output_kind
        not in ("logits", "probabilities"),
        f"score is {manifest.score!r}, not one of {', '.join(SCORES)}": manifest.score not in SCORES,
        f"output shape {manifest.output.shape} is not (N, C) with two classes or more": len(manifest.output.shape) != 2
        or manifest.n_classes < 2,
        "thresholds are not exactly alert and correct": set(manifest.thresholds) != {"alert", "correct"},
        "a threshold is not a finite number": not all(map(_is_cut, manifest.thresholds.values())),
        "logits is neither a name nor null": not isinstance(manifest.logits, str | None),
    }
    for problem, present in problems.items():
        if present:
            raise BundleError(f"manifest.json: {problem}; fit the bundle again")


def _is_cut(threshold: Threshold) -> bool:
    return isinstance(threshold.value, float) and math.isfinite(threshold.value) and isinstance(threshold.n, int)
