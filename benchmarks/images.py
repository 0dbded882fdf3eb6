"""The CIFAR-10 images and triggered samples beside the repository, loaded alike by every measurement."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.timing import silent
from calibrate.data import Preprocessing, Samples, load_samples
from guard.types import TensorSpec

__all__ = ["load_images"]


def load_images(place: Path, inputs: Sequence[TensorSpec], *, limit: int | None = None) -> Samples:
    """Return samples of ten classes for a model with these inputs; always the same draw."""
    return load_samples(
        place, inputs=inputs, n_classes=10, preprocessing=Preprocessing(), limit=limit, seed=0, progress=silent
    )
