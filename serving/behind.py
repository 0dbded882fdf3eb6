"""What is behind a server's port: models of its own, or another server whose answers are guarded."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from importlib import metadata

import grpc

from guard.runtime import Guard
from serving.alongside import Alongside
from serving.config import ServerConfig, UpstreamSettings
from serving.endpoint import served_name
from serving.errors import StartError, UnsupportedError
from serving.events import Observers
from serving.front import Front
from serving.health import Health
from serving.metrics import Metrics
from serving.models import IndexEntry, Models
from serving.relayed_calls import rpcs_of
from serving.repository import Repository
from serving.servicer import SERVER_NAME, SERVICE, Rpc, Servicer
from serving.store import Store
from serving.transport import generic_handler
from serving.upstream import Upstream

__all__ = ["Behind", "open_behind"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Behind:
    """What answers, and how it begins, changes and ends.

    Args:
        handler: Of the protocol's calls.
        rpcs: These calls by name, for another front than gRPC's.
        begin: Called once the server listens.
        index: Says what is served.
        reload: Serves what lies in the store now.
        drain: Refuses new requests, and waits so many seconds at most for those in flight.
        close: Ends every worker.
    """

    handler: grpc.GenericRpcHandler
    rpcs: Mapping[str, Rpc]
    begin: Callable[[], Awaitable[None]]
    index: Callable[[], Sequence[IndexEntry]]
    reload: Callable[[], Awaitable[None]]
    drain: Callable[[float], Awaitable[None]]
    close: Callable[[], Awaitable[None]]


def open_behind(
    guard: Guard | None,
    config: ServerConfig,
    *,
    store: Store | None,
    metrics: Metrics,
    health: Health,
    clock: Callable[[], float],
    observers: Observers,
) -> Behind:
    """Return what the configuration puts behind a server (see serving.server.serve for the arguments).

    Raises:
        StartError: There is an upstream, and no one model that is guarded.
        BundleError: The model's output has a name that the guard needs.
    """
    if config.upstream:
        return _upstream(
            guard,
            config,
            config.upstream,
            store=store,
            metrics=metrics,
            health=health,
            clock=clock,
            observers=observers,
        )
    repository = Repository(
        config, metrics=metrics, store=store, on_change=partial(_tell, health), clock=clock, observers=observers
    )
    version = metadata.version(SERVER_NAME)
    servicer = Servicer(repository, metrics=metrics, version=version, clock=clock, observers=observers)
    if guard is not None:
        repository.put(guard)
    rpcs = servicer.rpcs()
    return Behind(
        handler=generic_handler(SERVICE, rpcs, clock=clock),
        rpcs=rpcs,
        begin=partial(_fill, repository) if guard is None else _nothing,
        index=repository.models.index,
        reload=repository.refresh,
        drain=repository.drain,
        close=repository.close,
    )


def _upstream(
    guard: Guard | None,
    config: ServerConfig,
    settings: UpstreamSettings,
    *,
    store: Store | None,
    metrics: Metrics,
    health: Health,
    clock: Callable[[], float],
    observers: Observers,
) -> Behind:
    if guard is None:
        raise StartError("in front of an upstream one model is guarded; give its bundle, DIR, and not --repository")
    name = served_name(guard.manifest, config)

    def guarded(guard: Guard) -> Alongside:
        return Alongside(
            guard,
            replace(config, model_name=name),
            theirs=settings.model or name,
            fail=settings.fail,
            metrics=metrics,
            clock=clock,
            on_flagged=observers.on_flagged,
        )

    front = Front(
        Upstream(settings.address, clock=clock),
        guarded(guard),
        metrics=metrics,
        # A token that lets clients in here is nobody's business there.
        dropped=("authorization",) if config.security.token_file else (),
        clock=clock,
        observers=observers,
        on_reachable=lambda reachable: health.set({"": True, SERVICE: reachable, name: reachable}),
    )
    return Behind(
        handler=front,
        rpcs=rpcs_of(front.answers),
        begin=front.begin,
        index=front.index,
        reload=partial(_reload, front, guarded, store),
        drain=front.drain,
        close=front.close,
    )


async def _reload(front: Front, guarded: Callable[[Guard], Alongside], store: Store | None) -> None:
    """Guard with the bundle that lies there now, if it is good."""
    if store is None:
        raise UnsupportedError("this server was not told where its bundle lies; start it again")
    (place,) = store.places()
    front.put(guarded(await asyncio.to_thread(store.open, place.folder)))


async def _fill(repository: Repository) -> None:
    await repository.refresh()
    if not repository.models.names:
        raise StartError("the repository holds no model; put bundles into folders MODEL/VERSION in it")


def _tell(health: Health, models: Models) -> None:
    health.set({"": models.ready, SERVICE: models.ready, **{name: models.is_ready(name) for name in models.names}})


async def _nothing() -> None:
    pass
