"""What the settings of sigma do: its defaults beside other multiples, and beside deviations of single positions."""

from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path

import numpy as np

from benchmarks.detection import SHARED, cell, run
from calibrate.bounds import Method
from calibrate.bounds.sigma import SigmaSettings, fit_sigma
from calibrate.sites import ActivationBounds, BoundsProblem
from calibrate.statistics import site_moments

__all__ = ["measure"]

MODELS = ("badnets", "wanet", "blend", "all2all")
SEEDS = range(2)
COLUMNS = {
    "FPR": "measured_fpr", "TPR": "tpr", "AUROC": "auroc", "ASR guarded": "guarded_attack_success_rate",
    "robust accuracy": "guarded_robust_accuracy", "clean, guarded": "guarded_clean_accuracy",
}  # fmt: skip


def measure(out: Path) -> Iterator[str]:
    """Yield a table: one row per way of setting bounds and model."""
    if not (SHARED / "zoo").is_dir():
        yield f"skipped: {SHARED}/zoo is absent"
        return
    yield f"Means over {len(SEEDS)} seeds [least, greatest]; score relative_divergence; otherwise as in detection.\n"
    yield f"| bounds | model | {' | '.join(COLUMNS)} |"
    yield f"|---|---|{'---|' * len(COLUMNS)}"
    methods = _methods()
    for name in methods:
        for model in MODELS:
            runs = [run(out, model, name, "relative_divergence", seed, methods=methods) for seed in SEEDS]
            yield f"| {name} | {model} | {' | '.join(cell(runs, key) for key in COLUMNS.values())} |"


def _methods() -> Mapping[str, Method]:
    settings = {
        "sigma, k from 1, early 2 k (default)": SigmaSettings(),
        "sigma, one k for all sites": SigmaSettings(early_factor=1.0),
        "sigma, early 3 k": SigmaSettings(early_factor=3.0),
        "sigma, k from 0.5": SigmaSettings(candidates=(0.5, 1.0, 2.0, 4.0)),
    }
    ways: dict[str, Method] = {name: partial(fit_sigma, settings=chosen) for name, chosen in settings.items()}
    return {**ways, "mean + 4 sd over single positions": _over_positions}


def _over_positions(problem: BoundsProblem) -> ActivationBounds:
    moments = site_moments(problem.model, problem.sites, problem.inputs, pooling="channel", progress=problem.progress)
    upper = {tensor: (m.mean + 4 * m.std).astype(np.float32) for tensor, m in moments.items()}
    return ActivationBounds(method="over positions", settings={}, upper=upper)
