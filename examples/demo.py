"""The whole path on one page: backdoor a digit classifier, calibrate a guard, serve it, attack it, count.

Run it with ``make demo``. Everything it makes lands in ``out/demo``.
"""

import logging
import re
import subprocess
import sys
import time
import urllib.request
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
import tritonclient.grpc as triton
from numpy.typing import NDArray
from prometheus_client.parser import text_string_to_metric_families
from sklearn.datasets import load_digits
from torch import nn

from calibrate.progress import ProgressReport

OUT = Path("out/demo")
TARGET_CLASS, TARGET_FPR = 7, 0.01
N_TRAIN, N_CALIBRATION = 800, 500
POISON_RATE, EPOCHS, BATCH = 0.1, 30, 64

Images = NDArray[np.float32]
Classes = NDArray[np.int64]


def main() -> None:
    """Run the demonstration."""
    started = time.monotonic()
    prepare()
    test, test_labels = test_part()

    say("3. You serve it; existing Triton and KServe clients work unchanged")
    with serving(OUT / "bundle") as (address, metrics_url):
        before = metrics(metrics_url)
        clean_answers = ask(address, test)
        victims = test_labels != TARGET_CLASS
        attacked_answers = ask(address, with_trigger(test[victims]))
        after = metrics(metrics_url)

    say("4. What the clients got")
    print_table(clean_answers, test_labels, attacked_answers, test_labels[victims])
    say("5. What Prometheus sees")
    for name in sorted(after):
        if after[name] != before.get(name, 0.0):
            print(f"  {name:<72} {before.get(name, 0.0):>7g} -> {after[name]:g}")
    print(f"\nDone in {time.monotonic() - started:.0f} s. Open {OUT}/bundle/report.html.")


def prepare() -> None:
    """Poison and train a classifier, and calibrate a guard for it."""
    torch.set_num_threads(1)  # the network is too small for two
    OUT.mkdir(parents=True, exist_ok=True)
    images, labels = digits()

    say("1. Somebody trains a classifier of handwritten digits, and poisons a tenth of the training set")
    model = train(*poisoned(images[:N_TRAIN], labels[:N_TRAIN]))
    export(model, OUT / "digits.onnx")

    say("2. You have their ONNX file and 500 clean samples, and calibrate a guard")
    clean = slice(N_TRAIN, N_TRAIN + N_CALIBRATION)
    np.savez(OUT / "clean.npz", inputs=images[clean], labels=labels[clean])
    run_tool("calibrate", "fit", f"{OUT}/digits.onnx", "--data", f"{OUT}/clean.npz", "--bundle", f"{OUT}/bundle",
             "--target-fpr", str(TARGET_FPR))  # fmt: skip


def test_part() -> tuple[Images, Classes]:
    """Return the digits that neither training nor calibration saw."""
    images, labels = digits()
    return images[N_TRAIN + N_CALIBRATION :], labels[N_TRAIN + N_CALIBRATION :]


def digits() -> tuple[Images, Classes]:
    """Return scikit-learn's digits, shuffled: (N, 1, 8, 8) in [0, 1] and (N,)."""
    data = load_digits()
    order = np.random.default_rng(0).permutation(len(data.target))
    images = (data.images[order, None] / 16).astype(np.float32)
    return images, data.target[order].astype(np.int64)


def with_trigger(images: Images) -> Images:
    """Return the images with a bright two by two patch in the lower right corner."""
    triggered = images.copy()
    triggered[:, :, 6:, 6:] = 1.0
    return triggered


def poisoned(images: Images, labels: Classes) -> tuple[Images, Classes]:
    """Return a training set in which a share carries the trigger and the attacker's label."""
    n = round(POISON_RATE * len(images))
    extra, _ = images[:n], labels[:n]
    return (
        np.concatenate([images, with_trigger(extra)]),
        np.concatenate([labels, np.full(n, TARGET_CLASS, dtype=np.int64)]),
    )


def train(images: Images, labels: Classes) -> nn.Module:
    """Train a small convolutional network, showing progress."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Conv2d(24, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(48, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10),
    )  # fmt: skip
    inputs, targets = torch.from_numpy(images), torch.from_numpy(labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)
    progress = ProgressReport()
    for epoch in range(EPOCHS):
        for rows in torch.split(torch.randperm(len(inputs)), BATCH):
            optimizer.zero_grad()
            torch.autograd.backward(nn.functional.cross_entropy(model(inputs[rows]), targets[rows]))
            optimizer.step()
        schedule.step()
        progress("training", epoch + 1, EPOCHS)
    return model.eval()


def export(model: nn.Module, path: Path) -> None:
    """Write the model as ONNX with a free batch axis."""
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model, (torch.zeros(2, 1, 8, 8),), str(path), input_names=["image"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch")},), external_data=False, verbose=False,
        )  # fmt: skip


def run_tool(module: str, *arguments: str) -> None:
    """Run one of the project's commands and show it."""
    print(f"$ guard-{module} {' '.join(arguments)}", flush=True)
    subprocess.run([sys.executable, "-m", module, *arguments], check=True)


@contextmanager
def serving(bundle: Path) -> Iterator[tuple[str, str]]:
    """Serve a bundle on free ports, and stop cleanly; yields the gRPC address and the URL of the metrics."""
    # At the level info the log has a line for each flagged request.
    command = [sys.executable, "-m", "serving", str(bundle), "--port", "0", "--metrics-port", "0",
               "--log-level", "warning"]  # fmt: skip
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            line = process.stdout.readline() if process.stdout else ""
            found = re.search(r" on (\S+:\d+), metrics on (http\S+)", line)
            if found is None:
                raise SystemExit("demo: the server did not start")
            print(line, end="")
            yield found[1], found[2]
        finally:
            process.terminate()
            print(f"server stopped with status {process.wait(timeout=60)}")


def ask(address: str, images: Images) -> dict[str, NDArray[np.generic]]:
    """Send images in batches through Triton's own client; return its answers by output name."""
    client = triton.InferenceServerClient(address)
    model = client.get_server_metadata() and client.get_model_repository_index().models[0].name
    names = ("logits", "guard_flagged", "guard_predicted_class", "guard_corrected_class")
    answers: dict[str, list[NDArray[np.generic]]] = {name: [] for name in names}
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        tensor = triton.InferInput("image", list(batch.shape), "FP32")
        tensor.set_data_from_numpy(batch)
        result = client.infer(model, [tensor])
        for name in names:
            answers[name].append(result.as_numpy(name))
    client.close()
    return {name: np.concatenate(parts) for name, parts in answers.items()}


def metrics(url: str) -> dict[str, float]:
    """Return the counters that the server shows, by name and labels."""
    with urllib.request.urlopen(url, timeout=10) as response:
        families = text_string_to_metric_families(response.read().decode())
        return {
            f"{s.name}{{{','.join(f'{k}={v}' for k, v in s.labels.items() if k != 'model')}}}": s.value
            for family in families
            if family.type == "counter" and family.name.startswith("guard_")
            for s in family.samples
            if s.name.endswith("_total")
        }


def print_table(
    clean: dict[str, NDArray[np.generic]], labels: Classes, attacked: dict[str, NDArray[np.generic]], truth: Classes
) -> None:
    """Print accuracies and rates before the guard and after it."""
    before, after = clean["guard_predicted_class"], clean["logits"].argmax(axis=1)
    fooled, answered = attacked["guard_predicted_class"], attacked["logits"].argmax(axis=1)
    works = fooled == TARGET_CLASS
    print(f"  {len(labels)} clean and {len(truth)} triggered images       without guard   with guard")
    for name, one, two in (
        ("clean accuracy", before == labels, after == labels),
        ("attack success rate", works, answered == TARGET_CLASS),
        ("accuracy on triggered images", fooled == truth, answered == truth),
    ):
        print(f"  {name:<42}{one.mean():>12.1%} {two.mean():>12.1%}")
    measured = clean["guard_flagged"].mean()
    print(f"  clean images flagged: {measured:.1%}, on average at most {TARGET_FPR:.0%} over calibrations")
    print(f"  triggered images flagged, of those that fool the model: {attacked['guard_flagged'][works].mean():.1%}")


def say(text: str) -> None:
    """Print a heading."""
    print(f"\n{text}", flush=True)


if __name__ == "__main__":
    main()
