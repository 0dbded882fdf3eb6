"""What one audit record says of one flagged row; values in, one line of JSON out."""

import base64
import hashlib
import json
import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

import numpy as np

from guard.types import Evidence
from serving.datatypes import datatype_of, to_raw
from serving.events import RowsFlagged

__all__ = ["Record", "as_line", "describe_evidence", "describe_inputs", "n_bytes_of", "records_of"]

Record = dict[str, Any]

_MOST_NAMED = 5
_MOST_CHARACTERS = 256


def n_bytes_of(flagged: RowsFlagged) -> int:
    """Return how much memory the inputs of a request take."""
    return sum(
        sum(map(len, array.ravel().tolist())) if array.dtype == object else array.nbytes
        for array in flagged.inputs.values()
    )


def records_of(flagged: RowsFlagged, *, now: float) -> Iterator[Record]:
    """Yield a record per flagged row, with neither digest nor evidence yet.

    Args:
        flagged: A request and its verdict.
        now: Seconds since the epoch.
    """
    verdict = flagged.verdict
    time = datetime.fromtimestamp(now, UTC).isoformat(timespec="milliseconds")
    for row in np.flatnonzero(verdict.flagged).tolist():
        yield {
            "time": time,
            "request_id": flagged.request_id,
            "model": flagged.model[:_MOST_CHARACTERS],
            "version": flagged.version,
            "bundle": flagged.bundle,
            "row": row,
            "inputs_sha256": None,
            "predicted_class": int(verdict.predicted_class[row]),
            "corrected_class": int(verdict.corrected_class[row]),
            "p_value": _finite(verdict.p_value[row]),
            "score": _finite(verdict.score[row]),
            "evidence": None,
        }


def describe_inputs(record: Record, flagged: RowsFlagged, *, whole: bool) -> None:
    """Add the digest of a record's row, and with ``whole`` the row itself."""
    row = record["row"]
    record["inputs_sha256"] = _digest(flagged, row)
    if whole:
        record["inputs"] = {
            name: {
                "datatype": datatype_of(array.dtype).name,
                "shape": [1, *array.shape[1:]],
                "raw": base64.b64encode(to_raw(array[[row]])).decode(),
            }
            for name, array in flagged.inputs.items()
        }


def describe_evidence(evidence: Evidence) -> Record:
    """Return the most exceeded numbers and channels of a row, at most five of each."""
    share = np.nan_to_num(np.abs(evidence.away) / np.maximum(evidence.limits, np.finfo(np.float64).tiny), nan=np.inf)
    furthest = np.argsort(-share, axis=None, kind="stable")[:_MOST_NAMED]
    return {
        "raised_by": evidence.raised_by,
        "profile": _finite(evidence.profile),
        "head": _finite(evidence.head),
        "numbers": [
            {
                "site": evidence.sites[site],
                "number": evidence.numbers[number],
                "away": _finite(evidence.away[number, site]),
                "limit": _finite(evidence.limits[number, site]),
            }
            for number, site in zip(*np.unravel_index(furthest, share.shape), strict=True)
        ],
        "channels": [
            {"site": channel.site, "channel": channel.channel, "excess": _finite(channel.excess)}
            for channel in evidence.channels[:_MOST_NAMED]
        ],
        "place": evidence.place,
    }


def as_line(record: Record, *, max_bytes: int) -> bytes:
    """Return a record as one line; what would make it too long, inputs first, is left out and named."""
    line = _line(record)
    for entry in ("inputs", "evidence"):
        if len(line) > max_bytes and record.get(entry) is not None:
            record = {**record, entry: None, "left_out": [*record.get("left_out", []), entry]}
            line = _line(record)
    return line


def _line(record: Record) -> bytes:
    return json.dumps(record, allow_nan=False, separators=(",", ":")).encode() + b"\n"


def _digest(flagged: RowsFlagged, row: int) -> str:
    digest = hashlib.sha256()
    for array in flagged.inputs.values():
        digest.update(to_raw(array[[row]]))
    return digest.hexdigest()


def _finite(value: Any) -> float | None:
    return float(value) if math.isfinite(value) else None
