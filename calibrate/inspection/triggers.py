"""Distributions of recovered triggers: sampled, put on inputs, saved and loaded."""

import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from calibrate.arrays import UNREADABLE
from calibrate.files import write_file
from calibrate.inspection.trigger_families import FAMILIES, TriggerKind, put_on, trigger_shape
from calibrate.inspection.trigger_places import Places, draw_corners
from guard.errors import InputError
from guard.json_checks import is_count, is_number, is_one_of, is_record
from guard.types import FloatArray, IntArray

__all__ = ["TriggerDistribution", "load_triggers", "save_triggers"]

_FORMAT_VERSION = 1
_ARRAYS = ("bank", "corners", "weights")
_FIX = "write it again with --triggers"


def _is_share(value: object) -> bool:
    return is_number(value) and 0 <= float(str(value)) <= 1


_is_origin = is_record(
    kind=is_record(family=is_one_of(FAMILIES), size=lambda v: is_count(v) and v > 0, strength=_is_share),
    target_class=is_count,
    beta=_is_share,
    alpha=is_number,
    channel_axis=lambda value: is_count(value) and value in (1, 3),
)


@dataclass(frozen=True, slots=True, kw_only=True)
class TriggerDistribution:
    """Triggers that one generator recovered for one class: a bank of samples from it.

    Args:
        kind: How they are put on.
        target_class: What they make a model answer.
        beta: The level of success that the generator aimed at.
        alpha: The weight of its entropy.
        channel_axis: The axis of K in the inputs: 1 for (N, K, H, W), 3 for (N, H, W, K).
        places: Where patches go; other families cover the whole image.
        bank: (n, ...) float32 triggers in the inputs' own units; displacements as shares of the image's side.
    """

    kind: TriggerKind
    target_class: int
    beta: float
    alpha: float
    channel_axis: int
    places: Places
    bank: FloatArray

    def sample(self, n: int, rng: np.random.Generator) -> FloatArray:
        """Return n triggers (n, ...), drawn from the bank with replacement."""
        return self.bank[rng.integers(0, len(self.bank), size=n)]

    def apply(self, inputs: FloatArray, triggers: FloatArray, rng: np.random.Generator) -> FloatArray:
        """Return inputs that carry these triggers, one each, patches at places drawn from the distribution's.

        Args:
            inputs: (N, K, H, W) or, where channel_axis is 3, (N, H, W, K), model-ready.
            triggers: (N, ...) as sample gives them.
            rng: Draws the places.

        Raises:
            InputError: The triggers do not fit the inputs.
        """
        images = np.moveaxis(inputs, self.channel_axis, 1)
        self._check_fit(images, triggers)
        corners = draw_corners(self.places, len(images), rng)
        triggered = put_on(
            self.kind,
            torch.from_numpy(np.ascontiguousarray(images, dtype=np.float32)),
            torch.from_numpy(np.ascontiguousarray(triggers, dtype=np.float32)),
            torch.from_numpy(corners),
        )
        return np.ascontiguousarray(np.moveaxis(triggered.numpy(), 1, self.channel_axis), dtype=inputs.dtype)

    def _check_fit(self, images: FloatArray, triggers: FloatArray) -> None:
        channels, height, width = images.shape[1:]
        expected = trigger_shape(self.kind, (channels, height, width))
        ends = self.places.corners.max(axis=0) + (self.kind.size if self.kind.family == "patch" else 0)
        if triggers.shape != (len(images), *expected) or (ends > (height, width)).any():
            raise InputError(
                f"triggers {triggers.shape} of a {self.kind} do not fit {len(images)} inputs of {channels} channels,"
                f" {height}x{width}; recover them from the model that takes these inputs"
            )


def save_triggers(path: str | Path, distributions: Sequence[TriggerDistribution]) -> None:
    """Write distributions to an .npz, the same bytes for the same triggers.

    Raises:
        InputError: The file cannot be written.
    """
    origins = [_origin(distribution) for distribution in distributions]
    buffer = io.BytesIO()
    arrays: dict[str, Any] = {}
    for i, distribution in enumerate(distributions):
        values = (distribution.bank, distribution.places.corners, distribution.places.weights)
        arrays |= {f"{name}_{i}": array for name, array in zip(_ARRAYS, values, strict=True)}
    origin = json.dumps({"format_version": _FORMAT_VERSION, "distributions": origins})
    np.savez_compressed(buffer, origin=np.array(origin), **arrays)
    write_file("--triggers", str(path), buffer.getvalue())


def load_triggers(path: str | Path) -> tuple[TriggerDistribution, ...]:
    """Read distributions that save_triggers wrote.

    Raises:
        InputError: The file is not there, or is none of these.
    """
    try:
        with np.load(io.BytesIO(Path(path).read_bytes()), allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
        content = json.loads(str(arrays.pop("origin")))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror or error}; give a file of recovered triggers") from error
    except (*UNREADABLE, AttributeError) as error:
        raise InputError(f"{path} is no file of recovered triggers ({error}); {_FIX}") from error
    origins = _checked_origins(content, str(path))
    if arrays.keys() != {f"{name}_{i}" for name in _ARRAYS for i in range(len(origins))}:
        raise InputError(f"{path} describes {len(origins)} distributions but holds {sorted(arrays)}; {_FIX}")
    return tuple(
        _distribution(origin, *(arrays[f"{name}_{i}"] for name in _ARRAYS), path=str(path))
        for i, origin in enumerate(origins)
    )


def _origin(distribution: TriggerDistribution) -> Mapping[str, object]:
    fields = ("target_class", "beta", "alpha", "channel_axis")
    return {"kind": asdict(distribution.kind), **{name: getattr(distribution, name) for name in fields}}


def _checked_origins(content: object, path: str) -> Sequence[Mapping[str, Any]]:
    if not isinstance(content, dict) or content.get("format_version") != _FORMAT_VERSION:
        raise InputError(f"{path} is of another format version than {_FORMAT_VERSION}; {_FIX}")
    origins = content.get("distributions")
    if not isinstance(origins, list) or not all(map(_is_origin, origins)):
        raise InputError(f"{path} describes its distributions in a way that is not known here; {_FIX}")
    return origins


def _distribution(
    origin: Mapping[str, Any], bank: FloatArray, corners: IntArray, weights: FloatArray, *, path: str
) -> TriggerDistribution:
    kind = TriggerKind(**origin["kind"])
    fits = bank.ndim == 4 and bank.size > 0 and bank.shape[1:] == trigger_shape(kind, bank.shape[1:])
    if not fits or bank.dtype != np.float32:
        raise InputError(f"{path} holds triggers {bank.dtype} {bank.shape}, which are none of a {kind}; {_FIX}")
    if not np.isfinite(bank).all():
        raise InputError(f"{path} holds triggers with NaN or infinity; {_FIX}")
    if not _are_places(corners, weights):
        raise InputError(f"{path} holds places {corners.shape} with weights {weights.shape} that are none; {_FIX}")
    return TriggerDistribution(
        **{**origin, "kind": kind, "bank": bank, "places": Places(corners=corners, weights=weights)}
    )


def _are_places(corners: IntArray, weights: FloatArray) -> bool:
    if corners.dtype != np.int64 or weights.dtype != np.float64 or corners.shape != (len(weights), 2):
        return False
    return bool(len(weights) and (corners >= 0).all() and (weights >= 0).all() and np.isclose(weights.sum(), 1))
