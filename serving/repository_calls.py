"""The protocol's calls on the repository itself: what is in it, and what clients may change there."""

from collections.abc import Iterable

from serving._pb import open_inference_pb2 as pb
from serving.errors import UnsupportedError
from serving.models import Models, State
from serving.repository import Repository

__all__ = ["load_model", "repository_index", "unload_model"]

_IGNORED = ("unload_dependents",)
"""Parameters that change nothing here: no model depends on another."""


def repository_index(models: Models, request: pb.RepositoryIndexRequest) -> pb.RepositoryIndexResponse:
    """List every version of every model, its state, and why it is not what lies on the disk where that is so.

    Raises:
        UnsupportedError: A repository is named; there is but the one.
    """
    _check_repository(request.repository_name)
    entries = [
        pb.RepositoryIndexResponse.ModelIndex(name=e.model, version=e.version, state=e.state.value, reason=e.reason)
        for e in models.index()
        if e.state is State.READY or not request.ready
    ]
    return pb.RepositoryIndexResponse(models=entries)


async def load_model(
    repository: Repository, request: pb.RepositoryModelLoadRequest, _: float | None = None
) -> pb.RepositoryModelLoadResponse:
    """Load or reload a model (raises as Repository.load does).

    Raises:
        UnsupportedError: The request brings its own configuration or files, or names a repository.
    """
    _check_repository(request.repository_name)
    _check_parameters(request.parameters)
    await repository.load(request.model_name)
    return pb.RepositoryModelLoadResponse()


async def unload_model(
    repository: Repository, request: pb.RepositoryModelUnloadRequest, _: float | None = None
) -> pb.RepositoryModelUnloadResponse:
    """Unload a model (raises as Repository.unload does).

    Raises:
        UnsupportedError: The request names a repository.
    """
    _check_repository(request.repository_name)
    _check_parameters(request.parameters)
    await repository.unload(request.model_name)
    return pb.RepositoryModelUnloadResponse()


def _check_repository(name: str) -> None:
    if name:
        raise UnsupportedError("repository_name is not supported; leave it empty")


def _check_parameters(parameters: Iterable[str]) -> None:
    if unsupported := sorted(set(parameters) - set(_IGNORED)):
        raise UnsupportedError(
            f"the parameter {unsupported[0]!r} is not supported; bundles come from the repository alone"
        )
