"""What several test modules share and is slow to make."""

from collections.abc import Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def digits(tmp_path_factory):
    """Return a backdoored digits classifier with clean and triggered samples (see digits.Digits)."""
    from digits import make_digits

    return make_digits(tmp_path_factory.mktemp("digits"))


@pytest.fixture(scope="session")
def digits_bundle(digits, tmp_path_factory) -> Path:
    """Return a bundle fitted on it, which whoever changes it must copy first."""
    from digits import fit

    return fit(digits.model, digits.clean, tmp_path_factory.mktemp("fitted") / "bundle")


@pytest.fixture
def good_fit(digits, tmp_path) -> dict[str, Path]:
    """Return the paths of a fit that would work, its bundle in an empty folder."""
    (tmp_path / "out").mkdir()
    return {"model": digits.model, "data": digits.clean, "bundle": tmp_path / "out" / "bundle"}


@pytest.fixture
def one_thread() -> Iterator[None]:
    """Keep torch's threads from waiting for each other over small tensors."""
    import torch

    n_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n_threads)
