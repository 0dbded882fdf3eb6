"""One version of a model in memory: in use by requests, and closed once the last of them is done."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager

from serving.endpoint import Endpoint
from serving.statistics import Statistics

__all__ = ["ServedVersion"]


class ServedVersion:
    """A version that serves; used from one event loop.

    Its ``model``, ``version`` and ``label`` are what clients and metrics call it; its ``endpoint`` answers and its
    ``statistics`` count.

    Args:
        model: The model's name.
        version: A whole number.
        endpoint: Answers requests.
        statistics: Counts so far, as an earlier bundle of this version left them.
        identity: Of the bundle's files, as they were when it was opened.
    """

    def __init__(
        self, model: str, version: str, *, endpoint: Endpoint, statistics: Statistics, identity: tuple[object, ...]
    ) -> None:
        self.model, self.version, self.label = model, version, endpoint.name
        self.endpoint = endpoint
        self.statistics = statistics
        self.identity = identity
        self._n_uses = 0
        self._unused = asyncio.Event()
        self._unused.set()

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep it from being closed for as long as the block lasts."""
        self._n_uses += 1
        self._unused.clear()
        try:
            yield
        finally:
            self._n_uses -= 1
            if not self._n_uses:
                self._unused.set()

    async def close_when_unused(self) -> None:
        """Wait until nobody uses it, and end its workers. Only for a version that nobody can find any more."""
        await self._unused.wait()
        await self.endpoint.runner.close()
