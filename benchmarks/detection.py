"""How well the guard detects and corrects, on the backdoored CIFAR-10 models beside the repository."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import mean

from benchmarks.images import load_images
from benchmarks.timing import silent
from calibrate.bounds import METHODS, Method
from calibrate.data import Preprocessing
from calibrate.evaluation import Evaluation
from calibrate.pipeline import FitSettings, evaluate_bundle, fit_bundle
from guard.runtime import Guard

__all__ = ["SHARED", "cell", "measure", "run"]

SHARED = Path("../shared")
MODELS = ("badnets", "wanet", "blend", "all2all", "tact")
SEEDS = range(5)
COLUMNS = {
    "FPR": "measured_fpr", "TPR": "tpr", "AUROC": "auroc", "ASR original": "original_attack_success_rate",
    "ASR bounded": "bounded_attack_success_rate", "ASR guarded": "guarded_attack_success_rate",
    "robust accuracy": "guarded_robust_accuracy", "clean accuracy": "original_clean_accuracy",
    "clean, guarded": "guarded_clean_accuracy",
}  # fmt: skip


def measure(out: Path) -> Iterator[str]:
    """Yield a table: one row per model and score, means over seeds with the extremes of rates that vary."""
    if not (SHARED / "zoo").is_dir():
        yield f"skipped: {SHARED}/zoo is absent"
        return
    yield f"Means over {len(SEEDS)} seeds of draw and split [least, greatest]; 2000 calibration and 7500 test images.\n"
    yield f"| model | method | score | {' | '.join(COLUMNS)} |"
    yield f"|---|---|---|{'---|' * len(COLUMNS)}"
    for method, score in (("sigma", "relative_divergence"), ("sigma", "divergence")):
        for model in MODELS:
            runs = [run(out, model, method, score, seed) for seed in SEEDS]
            yield f"| {model} | {method} | {score} | {' | '.join(cell(runs, key) for key in COLUMNS.values())} |"


def run(
    out: Path, model: str, method: str, score: str, seed: int, *, methods: Mapping[str, Method] = METHODS
) -> Evaluation:
    """Fit one of the backdoored models and measure the guard on clean and triggered test images."""
    settings = FitSettings(method=method, score=score, preprocessing=Preprocessing(), limit=2000, seed=seed)
    data = SHARED / "data"
    source = SHARED / "zoo" / f"cifar10-resnet18-{model}.onnx"
    manifest, _ = fit_bundle(
        source, data / "cifar10-calibration.tar", out / "bundle", settings, silent, methods=methods
    )
    clean, triggered = (
        load_images(path, manifest.inputs)
        for path in (data / "cifar10-test.tar", source.with_name(f"cifar10-resnet18-{model}-triggered.npz"))
    )
    return evaluate_bundle(Guard.load(out / "bundle"), clean, triggered, silent)


def cell(runs: Sequence[Evaluation], key: str) -> str:
    """Return the mean over runs, with the extremes where they differ."""
    values = [asdict(run)[key] for run in runs]
    text = f"{mean(values):.4f}"
    return f"{text} [{min(values):.4f}, {max(values):.4f}]" if max(values) - min(values) > 5e-4 else text
