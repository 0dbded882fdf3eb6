"""findings.npz of a bundle: what its report is drawn from, written without pickle and read without trust."""

import io
import json
import reprlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from calibrate.arrays import UNREADABLE
from calibrate.estimation import TprEstimate, TprEstimation
from calibrate.evaluation import Answered, evaluate
from calibrate.findings import Findings, Seen
from calibrate.inspection.trigger_families import FAMILIES, TriggerKind
from calibrate.proportions import Proportion
from guard.bundle import FINDINGS, Bundle
from guard.errors import BundleError
from guard.json_checks import is_count, is_number, is_one_of, is_record, is_text
from guard.manifest import Manifest

__all__ = ["pack_findings", "unpack_findings"]

_CLASSES = ("original", "bounded", "guarded")
_PNG = b"\x89PNG\r\n\x1a\n"


def pack_findings(findings: Findings) -> bytes:
    """Return the content of findings.npz, the same bytes for the same findings."""
    answered, seen = findings.answered, findings.seen
    labels = np.zeros(0, dtype=np.int64) if answered.labels is None else answered.labels
    arrays: dict[str, Any] = {name: getattr(answered, name).astype(np.int64) for name in _CLASSES}
    arrays |= {"labels": labels, "scores": answered.scores.astype(np.float64), "flagged": answered.flagged}
    if seen is not None:
        arrays |= {"profile": seen.profile, "head": seen.head, "capped": seen.capped}
    arrays["triggers"] = np.frombuffer(findings.triggers, dtype=np.uint8)
    arrays["about"] = np.array(json.dumps(_about(findings)))
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)
    return buffer.getvalue()


def unpack_findings(bundle: Bundle) -> Findings:
    """Return the findings that a bundle holds.

    Raises:
        BundleError: It holds none, or they do not fit its manifest.
    """
    if bundle.findings is None:
        raise BundleError(f"the bundle holds no {FINDINGS}, which its report is drawn from; fit it again")
    try:
        with np.load(io.BytesIO(bundle.findings), allow_pickle=False) as file:
            arrays: dict[str, Any] = {name: np.asarray(file[name]) for name in file.files}
        about = json.loads(str(arrays.pop("about")))
        _check_arrays(arrays, bundle.manifest)
        return _findings(arrays, _checked(about), bundle)
    except (*UNREADABLE, AttributeError) as error:
        raise BundleError(
            f"{FINDINGS} is not what a report is drawn from ({reprlib.repr(str(error))}); fit the bundle again"
        ) from error


def _about(findings: Findings) -> Mapping[str, object]:
    found = findings.estimation
    return {
        "skipped": list(findings.skipped),
        "dropped_outputs": list(findings.dropped_outputs),
        "unranked": list(findings.unranked),
        "estimation": None if found is None else {
            "target_class": found.target_class,
            "is_given": found.is_given,
            "estimates": [_described(estimate) for estimate in found.estimates],
        },
    }  # fmt: skip


def _described(estimate: TprEstimate) -> Mapping[str, object]:
    return {
        "family": estimate.kind.family,
        "size": estimate.kind.size,
        "strength": estimate.kind.strength,
        "beta": estimate.beta,
        "n_tried": estimate.n_tried,
        "n_working": estimate.flagged.n,
        "n_flagged": estimate.flagged.count,
    }


def _check_arrays(arrays: Mapping[str, Any], manifest: Manifest) -> None:
    """Refuse arrays that are not those of a fit of this manifest."""
    n = len(arrays["scores"])
    expected = dict.fromkeys(_CLASSES, ("int64", (n,)))
    expected |= {"labels": ("int64", (n if len(arrays["labels"]) else 0,)), "scores": ("float64", (n,))}
    expected |= {"flagged": ("bool", (n,)), "triggers": ("uint8", (arrays["triggers"].size,))}
    if manifest.detector is not None:
        expected |= {"profile": ("float64", (n,)), "head": ("float64", (n,))}
        expected["capped"] = ("int64", (len(manifest.detector["sites"]),))
    found = {name: (values.dtype.name, values.shape) for name, values in arrays.items()}
    if found != expected or n == 0:
        raise ValueError(f"it holds {found}, not {expected}")
    for name, most in (*((name, manifest.n_classes - 1) for name in (*_CLASSES, "labels")), ("capped", n)):
        values = arrays.get(name, np.zeros(0))
        if ((values < 0) | (values > most)).any():
            raise ValueError(f"{name} are not all from 0 to {most}")
    if np.isnan(arrays["scores"]).any():
        raise ValueError("scores hold NaN")
    if len(arrays["triggers"]) and not arrays["triggers"].tobytes().startswith(_PNG):
        raise ValueError("triggers are no PNG")


def _checked(about: object) -> dict[str, Any]:
    if not _is_about(about) or not isinstance(about, dict):
        raise ValueError(f"about is {about}")
    return about


def _findings(arrays: Mapping[str, Any], about: Mapping[str, Any], bundle: Bundle) -> Findings:
    answered = Answered(
        labels=arrays["labels"] if len(arrays["labels"]) else None,
        target_classes=None,
        scores=arrays["scores"],
        flagged=arrays["flagged"],
        **{name: arrays[name] for name in _CLASSES},
    )
    has_seen = bundle.manifest.detector is not None
    return Findings(
        answered=answered,
        held_out=evaluate(answered, None, target_fpr=bundle.manifest.thresholds["alert"].target_fpr),
        clean_scores=bundle.clean_scores,
        seen=Seen(**{name: arrays[name] for name in ("profile", "head", "capped")}) if has_seen else None,
        triggers=arrays["triggers"].tobytes(),
        estimation=None if about["estimation"] is None else _estimation(about["estimation"]),
        **{name: tuple(about[name]) for name in ("skipped", "dropped_outputs", "unranked")},
    )


def _estimation(about: Mapping[str, Any]) -> TprEstimation:
    return TprEstimation(
        target_class=about["target_class"],
        is_given=about["is_given"],
        recovered=None,
        estimates=tuple(map(_estimate, about["estimates"])),
        examples=np.zeros(0),
    )


def _estimate(about: Mapping[str, Any]) -> TprEstimate:
    if about["n_flagged"] > about["n_working"]:
        raise ValueError(f"{about['n_flagged']} of {about['n_working']} are flagged")
    return TprEstimate(
        kind=TriggerKind(family=about["family"], size=about["size"], strength=about["strength"]),
        beta=about["beta"],
        n_tried=about["n_tried"],
        flagged=Proportion(count=about["n_flagged"], n=about["n_working"]),
    )


def _are_texts(value: object) -> bool:
    return isinstance(value, list) and all(map(is_text, value))


_is_estimate = is_record(family=is_one_of(FAMILIES), size=is_count, strength=is_number, beta=is_number,
                         n_tried=is_count, n_working=is_count, n_flagged=is_count)  # fmt: skip
_is_estimation = is_record(
    target_class=lambda value: value is None or is_count(value),
    is_given=lambda value: isinstance(value, bool),
    estimates=lambda value: isinstance(value, list) and all(map(_is_estimate, value)),
)
_is_about = is_record(skipped=_are_texts, dropped_outputs=_are_texts, unranked=_are_texts,
                      estimation=lambda value: value is None or _is_estimation(value))  # fmt: skip
