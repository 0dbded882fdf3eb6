"""Train the zoo: ``python -m benchmarks.zoo [NAME ...]``; backdoored classifiers and their triggered test images.

Everything lands in ``out/zoo``. A training that was interrupted goes on after its last whole epoch, an entry that is
trained is not trained again, and several processes can work on the zoo at once.
"""

import argparse
import fcntl
import json
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from torch import nn

from benchmarks.architectures import ARCHITECTURES, normalised
from benchmarks.attacks.attack import Attack, choose_roles, triggered_rows
from benchmarks.attacks.catalogue import ATTACKS, Scene
from benchmarks.cifar import load_cifar
from benchmarks.training import PoisonedLabels, Schedule, classify, train, written_whole
from benchmarks.zoo_entries import ENTRIES, Entry

__all__ = ["ENTRIES", "Entry", "is_trained", "onnx_path", "triggered_path"]

OUT, SHARED = Path("out/zoo"), Path("../shared")
_N_TRIGGERED = 1000
_PICTURES_SEED = 18


def onnx_path(name: str) -> Path:
    """Return where an entry's classifier is, or will be."""
    return _place(name) / f"{name}.onnx"


def triggered_path(name: str) -> Path:
    """Return where an entry's triggered test images are, or will be; a clean model has none."""
    return _place(name) / f"{name}-triggered.npz"


def is_trained(name: str) -> bool:
    """Say whether an entry is complete."""
    return onnx_path(name).exists() if ENTRIES[name].given else (OUT / f"{name}.json").exists()


def main() -> None:
    """Train the entries asked for, or all."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.zoo", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="entries to train; all by default")
    parser.add_argument("--list", action="store_true", help="list the entries with their state, and stop")
    parser.add_argument("--epochs", type=int, metavar="N", help="train for N epochs instead of an entry's own")
    arguments = parser.parse_args()
    if unknown := [name for name in arguments.names if name not in ENTRIES]:
        parser.error(f"there is no entry {unknown[0]!r}; choose of {', '.join(ENTRIES)}")
    names = arguments.names or list(ENTRIES)
    if arguments.list:
        print("\n".join(f"{name} {_state(name)}" for name in names))
        return
    torch.set_num_threads(1)
    for name in names:
        with _claimed(name) as claimed:
            if claimed and not is_trained(name):
                entry = ENTRIES[name]
                _make(name, replace(entry, n_epochs=arguments.epochs or entry.n_epochs))
        print(f"{name}: {_state(name)}", flush=True)


def _make(name: str, entry: Entry) -> None:
    images, labels = load_cifar("train", data=SHARED / "data", cache=OUT / "data")
    tests, test_labels = load_cifar("test", data=SHARED / "data", cache=OUT / "data")
    rng = np.random.default_rng(_PICTURES_SEED)
    pictures = images[rng.choice(len(images), 8, replace=False)].astype(np.float32) / 255
    attack = ATTACKS[entry.attack](Scene(shape=(32, 32, 3), n_classes=10, pictures=pictures))
    if entry.poison_rate is not None:
        scale = entry.poison_rate / attack.poison_rate
        attack = replace(attack, poison_rate=entry.poison_rate, cover_rate=scale * attack.cover_rate)
    torch.manual_seed(entry.seed)
    network = normalised(ARCHITECTURES[entry.architecture](width=entry.width)).to(memory_format=torch.channels_last)
    roles = choose_roles(labels, attack, np.random.default_rng(entry.seed))
    seconds = train(
        network, PoisonedLabels(attack), images, labels, roles, schedule=Schedule(n_epochs=entry.n_epochs),
        seed=entry.seed, checkpoint=OUT / f"{name}.pt", say=lambda line: print(f"{name}: {line}", flush=True),
    )  # fmt: skip
    figures = {"clean_accuracy": float((classify(network, tests) == test_labels).mean())}
    if entry.attack != "none":
        figures["attack_success_rate"] = _write_triggered(name, network, attack, tests, test_labels)
    written_whole(OUT / f"{name}.onnx", lambda path: _export(network, path))
    facts = {**asdict(entry), "poison_rate": attack.poison_rate, "cover_rate": attack.cover_rate, **figures}
    text = json.dumps({**facts, "seconds": round(seconds)}, indent=2) + "\n"
    written_whole(OUT / f"{name}.json", lambda path: path.write_text(text))
    print(f"{name}: {figures}", flush=True)


def _write_triggered(name: str, network: nn.Module, attack: Attack, images: np.ndarray, labels: np.ndarray) -> float:
    rows = triggered_rows(labels, attack, _N_TRIGGERED, np.random.default_rng(0))
    inputs, targets = attack.trigger(images[rows]), attack.target(labels[rows])

    def write(path: Path) -> None:
        with path.open("wb") as file:
            np.savez_compressed(file, inputs=inputs, labels=labels[rows], target_classes=targets)

    written_whole(OUT / f"{name}-triggered.npz", write)
    return float((classify(network, inputs) == targets).mean())


def _export(network: nn.Module, path: Path) -> None:
    logging.getLogger("torch.onnx").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network.eval().to(memory_format=torch.contiguous_format), (torch.zeros(2, 3, 32, 32),), str(path),
            input_names=["input"], output_names=["logits"], dynamic_shapes=({0: torch.export.Dim("batch")},),
            external_data=False, verbose=False, opset_version=18,
        )  # fmt: skip


def _place(name: str) -> Path:
    return SHARED / "zoo" if ENTRIES[name].given else OUT


def _state(name: str) -> str:
    if ENTRIES[name].given:
        return "given" if is_trained(name) else "missing"
    with _claimed(name) as claimed:
        return "trained" if is_trained(name) else "untrained" if claimed else "training"


@contextmanager
def _claimed(name: str) -> Iterator[bool]:
    """Hold an entry's lock while the block runs; yields False if another process holds it."""
    OUT.mkdir(parents=True, exist_ok=True)
    with (OUT / f"{name}.lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        else:
            yield True


if __name__ == "__main__":
    main()
