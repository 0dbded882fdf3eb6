"""Train the zoo: ``python -m benchmarks.zoo [NAME ...]``; backdoored classifiers and their triggered test images.

Everything lands in ``out/zoo``. A training that was interrupted goes on after its last whole epoch, an entry that is
trained is not trained again, and several processes can work on the zoo at once.
"""

import argparse
import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.datasets import load_cifar, load_digits
from benchmarks.zoo_entries import ENTRIES, Entry
from benchmarks.zoo_making import make_entry

__all__ = ["ENTRIES", "Entry", "calibration_path", "is_trained", "onnx_path", "test_path", "triggered_path"]

OUT, SHARED = Path("out/zoo"), Path("../shared")
SURROGATE = SHARED / "zoo" / "cifar10-resnet18-clean.onnx"


def onnx_path(name: str) -> Path:
    """Return where an entry's classifier is, or will be."""
    return _place(name) / f"{name}.onnx"


def triggered_path(name: str) -> Path:
    """Return where an entry's triggered test images are, or will be; a clean model has none."""
    return _place(name) / f"{name}-triggered.npz"


def calibration_path(name: str) -> Path:
    """Return the clean images to calibrate an entry's guard with."""
    return _clean_path(name, "calibration")


def test_path(name: str) -> Path:
    """Return the clean images to measure with; the triggered ones were made from them."""
    return _clean_path(name, "test")


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
    torch.set_num_threads(1)
    for name in names:
        if not arguments.list:
            _train(name, arguments.epochs)
        print(f"{name} {_state(name)}", flush=True)


def _train(name: str, n_epochs: int | None) -> None:
    if is_trained(name) or ENTRIES[name].given:
        return
    entry = replace(ENTRIES[name], n_epochs=n_epochs or ENTRIES[name].n_epochs)
    if entry.base is not None:
        _train(entry.base, n_epochs)
        if not is_trained(entry.base):
            return
    with _claimed(name) as claimed:
        if claimed and not is_trained(name):
            dataset = (
                load_digits(cache=OUT) if entry.dataset == "digits" else load_cifar(data=SHARED / "data", cache=OUT)
            )
            make_entry(name, entry, dataset, out=OUT, surrogate=SURROGATE, say=lambda line: print(f"{name}: {line}"))


def _place(name: str) -> Path:
    return SHARED / "zoo" if ENTRIES[name].given else OUT


def _clean_path(name: str, part: str) -> Path:
    return OUT / f"digits-{part}.npz" if ENTRIES[name].dataset == "digits" else SHARED / f"data/cifar10-{part}.tar"


def _state(name: str) -> str:
    entry = ENTRIES[name]
    if is_trained(name) or entry.given:
        return "given" if entry.given else "trained"
    if entry.base is not None and _state(entry.base) == "training":
        return "waiting"
    with _claimed(name) as claimed:
        return "untrained" if claimed else "training"


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
