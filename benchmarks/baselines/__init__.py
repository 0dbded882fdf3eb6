"""Published defences, ported and tested on fixtures with known answers (see README.md beside this file)."""

from collections.abc import Mapping
from types import MappingProxyType

from benchmarks.baselines import ibd_psc, scale_up
from benchmarks.baselines.bounded import fit_mmdf, mitigate_mmac, mitigate_unit
from benchmarks.baselines.classifier import OnnxClassifier
from benchmarks.baselines.fine_tuning import fine_tune
from benchmarks.baselines.ibau import unlearn
from benchmarks.baselines.protocol import Detector, Fit, Mitigate, Scorer, score_and_count
from benchmarks.baselines.strip import fit_strip
from benchmarks.baselines.teco import fit_teco
from benchmarks.baselines.ted import fit_ted
from benchmarks.baselines.ted_plus_plus import fit_ted_plus_plus

__all__ = ["BASELINES", "MITIGATIONS", "Detector", "Fit", "Mitigate", "OnnxClassifier", "Scorer", "score_and_count"]

BASELINES: Mapping[str, Detector] = MappingProxyType({
    "strip": Detector(fit=fit_strip, answers=False),
    "scale-up": Detector(fit=scale_up.fit_scale_up, published_threshold=scale_up.THRESHOLD),
    "scale-up-limited": Detector(fit=scale_up.fit_scale_up_limited, published_threshold=scale_up.THRESHOLD),
    "ted": Detector(fit=fit_ted),
    "ted++": Detector(fit=fit_ted_plus_plus),
    "ibd-psc": Detector(fit=ibd_psc.fit_ibd_psc, published_threshold=ibd_psc.THRESHOLD),
    "teco": Detector(fit=fit_teco),
    "mmdf": Detector(fit=fit_mmdf),
})  # fmt: skip
"""Detectors of triggered inputs by name."""

MITIGATIONS: Mapping[str, Mitigate] = MappingProxyType({
    "ft": fine_tune,
    "i-bau": unlearn,
    "unit": mitigate_unit,
    "mmac": mitigate_mmac,
})  # fmt: skip
"""Ways to mend the model itself, by name."""
