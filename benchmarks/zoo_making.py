"""Make one entry of the zoo: poison, train, measure, write."""

import json
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from benchmarks.architectures import ARCHITECTURES, normalised
from benchmarks.attacks.attack import Attack, choose_roles, triggered_rows
from benchmarks.attacks.catalogue import Scene
from benchmarks.attacks.recipes import RECIPES, Victim
from benchmarks.datasets import Dataset, save_arrays
from benchmarks.models import export_network
from benchmarks.training import Batch, Schedule, classify, train, written_whole
from benchmarks.zoo_entries import Entry
from calibrate.differentiable import DifferentiableModel

__all__ = ["make_entry", "schedule_of", "victim_of"]

_N_TRIGGERED, _N_PICTURES, _PICTURES_SEED = 1000, 8, 18


def make_entry(
    name: str, entry: Entry, dataset: Dataset, *, out: Path, surrogate: Path, say: Callable[[str], None]
) -> None:
    """Train an entry and write NAME.onnx, NAME-triggered.npz and, last of all, NAME.json.

    Args:
        name: What the files are called.
        entry: What to train.
        dataset: What to train on and measure with.
        out: Where the files go, checkpoints included, and where the entry's base is.
        surrogate: A clean model, ONNX, for attacks that need one.
        say: Takes lines of progress.
    """
    torch.manual_seed(entry.seed)
    recipe = RECIPES[entry.attack](victim_of(dataset, surrogate), entry.poison_rate)
    torch.manual_seed(entry.seed)
    network = normalised(ARCHITECTURES[entry.architecture](entry.width))
    if entry.base is not None:
        network.load_state_dict(torch.load(out / f"{entry.base}.pt", weights_only=True)["network"])
    images, labels = dataset.training
    roles = choose_roles(labels, recipe.attack, np.random.default_rng(entry.seed))
    seconds = train(
        network, recipe, Batch(images=images, labels=labels, roles=roles), schedule=schedule_of(entry),
        seed=entry.seed, checkpoint=out / f"{name}.pt", say=say,
    )  # fmt: skip
    correct = classify(network, dataset.test[0]) == dataset.test[1]
    figures: dict[str, object] = {"clean_accuracy": float(correct.mean())}
    if entry.attack != "none":
        figures |= _write_triggered(out / f"{name}-triggered.npz", network, recipe.attack, dataset)
    example = torch.from_numpy(images[:2]).permute(0, 3, 1, 2).float()
    written_whole(out / f"{name}.onnx", lambda path: export_network(network, example, path))
    rates = {"poison_rate": recipe.attack.poison_rate, "cover_rate": recipe.attack.cover_rate}
    text = json.dumps({**asdict(entry), **rates, **figures, "seconds": round(seconds)}, indent=2) + "\n"
    written_whole(out / f"{name}.json", lambda path: path.write_text(text))
    say(str(figures))


def schedule_of(entry: Entry) -> Schedule:
    """Return how long and how fast an entry is trained."""
    if entry.dataset == "digits":
        return Schedule(n_epochs=entry.n_epochs, peak_rate=0.1, batch_size=32, n_padded=0, mirrored=False)
    if entry.base is not None:
        return Schedule(n_epochs=entry.n_epochs, peak_rate=0.05)
    if entry.architecture == "vit":
        return Schedule(n_epochs=entry.n_epochs, peak_rate=1e-3, weight_decay=0.05, adaptive=True)
    return Schedule(n_epochs=entry.n_epochs)


def victim_of(dataset: Dataset, surrogate: Path) -> Victim:
    """Return what an attacker knows; the surrogate, a clean model as ONNX, is read when an attack needs it."""
    images, labels = dataset.training
    rows = np.random.default_rng(_PICTURES_SEED).choice(len(images), _N_PICTURES, replace=False)
    scene = Scene(shape=images.shape[1:], n_classes=10, pictures=images[rows].astype(np.float32) / 255)
    return Victim(scene=scene, images=images, labels=labels, surrogate=lambda: _logits_of(surrogate))


def _logits_of(path: Path) -> Callable[[Tensor], Tensor]:
    model = DifferentiableModel(onnx.load(path))
    return lambda x: model(x, outputs=["logits"])[0]


def _write_triggered(path: Path, network: nn.Module, attack: Attack, dataset: Dataset) -> dict[str, object]:
    images, labels = dataset.test
    rows = triggered_rows(labels, attack, _N_TRIGGERED, np.random.default_rng(0))
    inputs, targets = attack.trigger(images[rows]), attack.target(labels[rows])
    save_arrays(path, inputs=inputs, labels=labels[rows], target_classes=targets)
    wanted = sorted({int(target) for target in targets})
    return {
        "target": wanted[0] if len(wanted) == 1 else "label + 1",
        "n_triggered": len(rows),
        "attack_success_rate": float((classify(network, inputs) == targets).mean()),
    }
