"""The models of a server as its clients see them: what is known, what is ready, and which version answers."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum

from serving.errors import NotFoundError, NotReadyError
from serving.versions import ServedVersion

__all__ = ["IndexEntry", "Models", "Slot", "State"]

_MAX_NAMED = 10


class State(StrEnum):
    """Triton's words for the state of a version."""

    LOADING = "LOADING"
    READY = "READY"
    UNAVAILABLE = "UNAVAILABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class IndexEntry:
    """One version of a model: what state it is in, and why where that needs saying."""

    model: str
    version: str
    state: State
    reason: str


@dataclass(slots=True, kw_only=True)
class Slot:
    """One version of a model: what serves it, if anything does, and what is to be said of its bundle.

    Args:
        serving: Answers requests for it.
        opening: Whether its first bundle is being opened.
        reason: Why the bundle that lies there is not what serves; empty where it is.
    """

    serving: ServedVersion | None = None
    opening: bool = False
    reason: str = ""

    @property
    def state(self) -> State:
        """What the index says of it."""
        if self.serving:
            return State.READY
        return State.LOADING if self.opening else State.UNAVAILABLE


class Models:
    """The models of one server by name and version; used from one event loop."""

    def __init__(self) -> None:
        self._slots: dict[str, dict[str, Slot]] = {}
        self.unloaded: set[str] = set()
        self.stopping = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of the models, ready or not."""
        return tuple(sorted(self._slots))

    @property
    def ready(self) -> bool:
        """Whether every model that should be served has a version that is, and the server is not stopping."""
        wanted = self._slots.keys() - self.unloaded
        return bool(self._slots) and not self.stopping and all(map(self.is_ready, wanted))

    def is_ready(self, model: str, version: str = "") -> bool:
        """Say whether a version takes requests; no version means any."""
        slots = [slot for name, slot in self.versions(model).items() if version in ("", name)]
        return not self.stopping and any(slot.serving for slot in slots)

    def find(self, model: str, version: str = "") -> ServedVersion:
        """Return what serves a version; no version means the latest that is ready.

        Raises:
            NotFoundError: There is no such model or version.
            NotReadyError: There is, but it cannot be served now.
        """
        slots = self.versions(model)
        if not slots:
            raise NotFoundError(f"model {model!r} is not served here; {_listed(self.names)}")
        if version and version not in slots:
            raise NotFoundError(f"model {model!r} has no version {version!r}; it has {_quoted(slots)}")
        served = [slot.serving for name, slot in slots.items() if slot.serving and version in ("", name)]
        if not served:
            which = f"version {version!r} of model {model!r}" if version else f"model {model!r}"
            raise NotReadyError(f"{which} is not ready; the repository index says why")
        return served[-1]

    def served(self, model: str = "", version: str = "") -> Sequence[ServedVersion]:
        """Return every version that serves, by model and version; a name or a version keeps only those."""
        slots = ((name, number, slot) for name in self.names for number, slot in self.versions(name).items())
        return [s.serving for name, number, s in slots if s.serving and model in ("", name) and version in ("", number)]

    def index(self) -> Sequence[IndexEntry]:
        """Return every version that is known, by model and version."""
        return [
            IndexEntry(model=model, version=version, state=slot.state, reason=slot.reason)
            for model in self.names
            for version, slot in self.versions(model).items()
        ]

    def versions(self, model: str) -> dict[str, Slot]:
        """Return a model's versions, lowest first; empty for a model that is not known."""
        return dict(sorted(self._slots.get(model, {}).items(), key=lambda item: int(item[0] or 0)))

    def slot(self, model: str, version: str) -> Slot:
        """Return the slot of a version; what is not known becomes so."""
        return self._slots.setdefault(model, {}).setdefault(version, Slot())

    def remove(self, model: str, version: str) -> None:
        """Forget a version, and with the last one the model."""
        del self._slots[model][version]
        if not self._slots[model]:
            del self._slots[model]
            self.unloaded.discard(model)


def _listed(names: Sequence[str]) -> str:
    if not names:
        return "no model is"
    return f"{_quoted(names)} {'is' if len(names) == 1 else 'are'}"


def _quoted(names: Iterable[str]) -> str:
    known = list(names)
    more = f" and {len(known) - _MAX_NAMED} more" if len(known) > _MAX_NAMED else ""
    return ", ".join(map(repr, known[:_MAX_NAMED])) + more
