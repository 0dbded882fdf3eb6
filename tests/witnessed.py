"""A guard with a one-pass detector whose evidence can be worked out by hand.

The model is ``logits = mean over places of relu(x)`` on (N, 2, 4, 4): one activation, ``a``, bounded at 1 in both
channels. Its clean standard deviations are 1 and 2, the clean means 0.
"""

from dataclasses import replace

import numpy as np
import onnx
from bundles import clean_scores, manifest
from small_graphs import model_of, node

from calibrate.edit import check_edited, insert_bounds
from calibrate.observers import MeanStd, Standards, show_excess, show_profile_and_head
from calibrate.sites import ActivationBounds, Site
from guard.bundle import BOUNDED, DETECTOR, OBSERVED, ORIGINAL, THRESHOLDS, Bundle, pack_scores, save_bundle
from guard.detector import Detector, Standard, pack_detector
from guard.manifest import Manifest
from guard.types import TensorSpec, Threshold

__all__ = ["ALERT", "N_PLACES", "bright", "bundle", "save"]

ALERT = 4.0
N_PLACES = 16
_SITE = Site(tensor="a", function="Relu", shape=(None, 2, 4, 4), channel_axis=1)


def bright(value: float, *, channel: int = 1, place: tuple[int, int] = (2, 3)) -> np.ndarray:
    """Return (1, 2, 4, 4): zeros but for one value."""
    x = np.zeros((1, 2, 4, 4), dtype=np.float32)
    x[0, channel, *place] = value
    return x


def bundle(*, is_image: bool = True) -> Bundle:
    """Return the bundle: the profile is 4 log(1 + peak)^2 + log(1 + 10 level)^2, cut at 4."""
    original = model_of(
        node("Relu", ["x"], ["a"]), node("GlobalAveragePool", ["a"], ["p"]), node("Flatten", ["p"], ["y"]),
        x=("N", 2, 4, 4), y=("N", 2),
    )  # fmt: skip
    bounds = ActivationBounds(method="by-hand", settings={}, upper={"a": np.ones((), np.float32)})
    unit = MeanStd(mean=np.zeros(2), std=np.ones(2))
    activation = MeanStd(mean=np.zeros(2), std=np.array([1.0, 2.0]))
    standards = {"a": Standards(activation=activation, level=unit, reach=unit)}
    upper = {"a": np.ones((1, 1, 1, 1), np.float32)}
    observed, names = show_profile_and_head(original, "y", [_SITE], standards, upper)
    bounded, capped, capped_at = show_excess(insert_bounds(original, bounds, [_SITE]), [_SITE], bounds, standards)
    outputs = {**names, "sites": ["a"], "capped": capped, "capped_at": capped_at}
    detector = Detector(
        center=np.log([1.0, 0.1, 1.0, 0.1]),
        scale=np.ones(4),
        precision=np.diag([4.0, 1.0, 1e-9, 1e-9]),
        fill=np.zeros(2 if is_image else 0),
        profile=Standard(origin=0.0, spread=1.0),
        head=Standard(origin=0.0, spread=0.5),
    )
    return Bundle(
        manifest=_manifest(outputs),
        original=_bytes(original),
        observed=_bytes(check_edited(observed)),
        bounded=_bytes(check_edited(bounded)),
        clean_scores=clean_scores(),
        detector=detector,
    )


def save(folder) -> None:
    """Write the bundle there."""
    found = bundle()
    contents = {
        ORIGINAL: found.original, OBSERVED: found.observed, BOUNDED: found.bounded,
        DETECTOR: pack_detector(found.detector), THRESHOLDS: pack_scores(found.clean_scores),
    }  # fmt: skip
    save_bundle(folder, found.manifest, contents)


def _manifest(outputs: dict) -> Manifest:
    cut = Threshold(value=ALERT, target_fpr=0.01, n=len(clean_scores()))
    return replace(
        manifest(),
        score="one_pass",
        detector=outputs,
        inputs=(TensorSpec(name="x", dtype="float32", shape=(None, 2, 4, 4)),),
        output=TensorSpec(name="y", dtype="float32", shape=(None, 2)),
        thresholds={"alert": cut, "correct": replace(cut, value=3.5)},
    )


def _bytes(model: onnx.ModelProto) -> bytes:
    return bytes(model.SerializeToString())
