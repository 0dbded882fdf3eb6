"""Loads, reloads and unloads the models of a server while it serves.

A change opens the new bundle off the event loop, checks all of it, and puts it in the earlier one's place in one step.
Requests that the earlier one has begun it finishes, however long they take; then it is closed. Where the new bundle is
bad the earlier one stays, and no change on disk but the removal of its folder leaves a model that serves with nothing.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from guard.errors import GuardError, InputError
from guard.runtime import Guard
from serving.background import Background
from serving.config import ModelControl, ServerConfig
from serving.endpoint import Endpoint, served_name
from serving.errors import ControlError, LoadError, NotFoundError
from serving.events import Observers
from serving.metrics import Metrics
from serving.models import Models, Slot
from serving.statistics import Statistics
from serving.store import FIRST_VERSION, Place, Store, fingerprint, is_model_name, open_place, without_root
from serving.versions import ServedVersion

__all__ = ["Repository"]

_logger = logging.getLogger(__name__)

_UNLOADED = "unloaded"


class Repository:
    """Changes which models a server has; used from one event loop. ``models`` is what it has.

    Args:
        config: Names, mode, limits, and whether clients may load and unload.
        metrics: Counts what happens; the series of a version begin and end with it.
        store: Where bundles lie; None: there is only what is put in.
        on_change: Called whenever something may have become ready or ceased to be.
        clock: Seconds, only ever growing.
        observers: Told of every request with flagged rows.
    """

    def __init__(
        self,
        config: ServerConfig,
        *,
        metrics: Metrics,
        store: Store | None = None,
        on_change: Callable[[Models], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
        observers: Observers = Observers(),  # noqa: B008 - a value
    ) -> None:
        self.models = Models()
        self._config, self._metrics, self._store, self._clock = config, metrics, store, clock
        self._on_change = on_change
        self._observers = observers
        self._background = Background()
        self._retired: set[ServedVersion] = set()

    def put(self, guard: Guard) -> None:
        """Serve a guard as the first version of the model that it, or the configuration, names.

        Raises:
            BundleError: The model's output has a name that the guard needs.
        """
        model = served_name(guard.manifest, self._config)
        folder = self._store.root if self._store else Path()
        place = Place(model=model, version=FIRST_VERSION, label=model, folder=folder)
        self._serve(place, guard, fingerprint(folder) if self._store else ())

    async def refresh(self) -> None:
        """Serve what the store holds: open what is new or changed, let go of what is gone.

        What clients unloaded stays so. A bundle that cannot be served is logged, and the index says why.

        Raises:
            StartError: The store cannot be read; nothing changes.
        """
        await self._background.in_turn(self._refresh())

    async def load(self, model: str) -> None:
        """Serve a model as the store has it now; versions that did not change are left as they are.

        Raises:
            ControlError: The operator does not let clients do so.
            InputError: No model can have this name.
            NotFoundError: The store has no such model.
            LoadError: A version cannot be served; what served before still does.
        """
        self._check_control(model)
        await self._background.in_turn(self._load(model))

    async def unload(self, model: str) -> None:
        """Stop serving a model; requests that have begun are finished.

        Raises:
            NotFoundError: There is no such model; ControlError and InputError as load.
        """
        self._check_control(model)
        await self._background.in_turn(self._unload(model))

    async def drain(self, grace_s: float) -> None:
        """Refuse new requests and wait until none is in flight, or the time is up."""
        self.models.stopping = True
        self._on_change(self.models)
        await asyncio.gather(*(version.endpoint.runner.drain(grace_s) for version in self._in_memory()))

    async def close(self) -> None:
        """Wait for runs and changes in progress, which cannot be stopped, and end every worker."""
        self.models.stopping = True
        await self._background.finish()
        await asyncio.gather(*(version.endpoint.runner.close() for version in self.models.served()))

    async def _refresh(self) -> None:
        places = await self._places()
        held = {place.model for place in places}
        for model in set(self.models.names) - held:
            self._release(model, self.models.versions(model))
        for place in places:
            slot = self.models.slot(place.model, place.version)
            slot.opening = place.model not in self.models.unloaded
            if not slot.opening:
                slot.reason = _UNLOADED
        for model in sorted(held - self.models.unloaded):
            await self._bring(model, [place for place in places if place.model == model])

    async def _load(self, model: str) -> None:
        places = [place for place in await self._places() if place.model == model]
        if not places:
            raise NotFoundError(f"model {model!r} is not in the repository")
        await self._bring(model, places)
        slots = self.models.versions(model)
        if problems := [f"version {name!r}: {slot.reason}" for name, slot in slots.items() if slot.reason]:
            ready = ", ".join(version.version for version in self.models.served(model)) or "none"
            raise LoadError(f"model {model!r} cannot be loaded: {'; '.join(problems)}; versions that serve on: {ready}")

    async def _unload(self, model: str) -> None:
        slots = self.models.versions(model)
        if not slots:
            raise NotFoundError(f"model {model!r} is not served here")
        self.models.unloaded.add(model)
        for slot in slots.values():
            self._retire(slot)
            slot.reason, slot.opening = _UNLOADED, False
        self._on_change(self.models)

    async def _bring(self, model: str, places: Sequence[Place]) -> None:
        """Serve these versions of a model, and no others as soon as one of these serves."""
        for place in places:
            if self._store and not self.models.stopping:
                await self._open(self.models.slot(model, place.version), place, self._store)
        slots = self.models.versions(model)
        gone = slots.keys() - {place.version for place in places}
        if any(slots[place.version].serving for place in places):
            self.models.unloaded.discard(model)
            self._release(model, gone)
        else:
            for version in gone:
                slots[version].reason = "its folder is gone; it serves on as no version that is there can"
        self._on_change(self.models)

    async def _open(self, slot: Slot, place: Place, store: Store) -> None:
        """Put a bundle in its slot, or say there why it cannot be."""
        slot.opening = True
        try:
            identity = await asyncio.to_thread(fingerprint, place.folder)
            if slot.serving is None or slot.serving.identity != identity:
                guard = await asyncio.to_thread(open_place, store, place)
                self._serve(place, guard, identity)
            slot.reason = ""
        except GuardError as error:
            slot.reason = without_root(store, str(error))
        except Exception:
            slot.reason = "it cannot be opened; the server's log says why"
            _logger.exception("model %s cannot be opened", place.label)
        finally:
            slot.opening = False
        if slot.reason:
            rest = "the bundle before it serves on" if slot.serving else "it is not served"
            _logger.error("model %s: %s; %s", place.label, slot.reason, rest)

    def _serve(self, place: Place, guard: Guard, identity: tuple[object, ...]) -> None:
        """Put a guard in the place of what serves a version, in one step."""
        slot = self.models.slot(place.model, place.version)
        config = replace(self._config, model_name=place.label)
        endpoint = Endpoint(
            guard,
            config,
            metrics=self._metrics,
            version=place.version,
            clock=self._clock,
            observers=self._observers,
        )
        statistics = slot.serving.statistics if slot.serving else Statistics()
        self._retire(slot)
        slot.serving = ServedVersion(
            place.model, place.version, endpoint=endpoint, statistics=statistics, identity=identity
        )
        self._on_change(self.models)

    def _release(self, model: str, versions: Iterable[str]) -> None:
        for version in versions:
            self._retire(self.models.slot(model, version))
            self.models.remove(model, version)
        self._on_change(self.models)

    def _retire(self, slot: Slot) -> None:
        """Let nobody find what serves a slot any more, and close it once those who have found it are done."""
        version, slot.serving = slot.serving, None
        if version is not None:
            self._retired.add(version)
            self._background.start(self._close(version))

    async def _close(self, version: ServedVersion) -> None:
        await version.close_when_unused()
        self._retired.discard(version)
        if version.label not in {served.label for served in self.models.served()}:
            self._metrics.remove_model(version.label)

    async def _places(self) -> Sequence[Place]:
        return await asyncio.to_thread(self._store.places) if self._store else ()

    def _in_memory(self) -> Iterable[ServedVersion]:
        return (*self.models.served(), *self._retired)

    def _check_control(self, model: str) -> None:
        if self._config.model_control is ModelControl.NONE or self._store is None:
            raise ControlError("clients may not load or unload models here; --model-control explicit would let them")
        if not is_model_name(model):
            raise InputError(f"{model!r} can be no model's name: that is the name of a folder in the repository")
