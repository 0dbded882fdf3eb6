"""A model that runs: the protocol the guard relies on, and its one implementation on onnxruntime."""

import os
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

from guard.errors import ModelError
from guard.input_checks import ArraysByName, SharedAxis, check_inputs, check_shared_axes
from guard.rows import n_rows
from guard.types import Inputs, TensorSpec

__all__ = ["CPU", "CUDA", "Model", "OrtModel"]

CPU = "CPUExecutionProvider"
CUDA = "CUDAExecutionProvider"

_DTYPES = {
    "tensor(float)": "float32",
    "tensor(float16)": "float16",
    "tensor(double)": "float64",
    "tensor(bool)": "bool",
    **{f"tensor({sign}int{bits})": f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)},
}
_ERROR_LEVEL = 3


class Model(Protocol):
    """Rows in, named tensors out."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs; axis 0 of each is N and always free."""
        ...

    def run(self, inputs: Inputs, names: Sequence[str]) -> tuple[NDArray[np.generic], ...]:
        """Return the named outputs for these inputs, row for row.

        Args:
            inputs: (N, ...) as the specs say: by name, or one array for a model with one input.
            names: Names of graph outputs.

        Raises:
            InputError: The inputs do not fit the specs.
            ModelError: The run failed.
        """
        ...


class OrtModel:
    """An ONNX model in an onnxruntime session.

    Args:
        model: The serialised model.
        label: What to call it in errors, such as ``original``.
        threads: Threads of one run; by default as many as this process may use.
        provider: The execution provider; the CPU also serves what a GPU provider lacks.

    Raises:
        ModelError: onnxruntime refuses the model or the provider, or the model's inputs cannot share one batch axis.
    """

    def __init__(self, model: bytes, *, label: str, threads: int | None = None, provider: str = CPU) -> None:
        self._label = label
        self._session = _open_session(model, label, threads or _usable_cores(), provider)
        declared = tuple(_spec(i) for i in self._session.get_inputs())
        self._shared_axes = _shared_axes(self._session.get_inputs())
        self._batch = _common_batch(declared, label)
        self._inputs = tuple(spec.with_free_batch() for spec in declared)
        self._outputs = tuple(_spec(o) for o in self._session.get_outputs())

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """The inputs. A fixed batch axis is shown as free: runs are cut and padded to fit it."""
        return self._inputs

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """The graph's outputs as it declares them."""
        return self._outputs

    def run(self, inputs: Inputs, names: Sequence[str]) -> tuple[NDArray[np.generic], ...]:
        """Return the named outputs for these inputs, row for row (see Model.run)."""
        arrays = check_inputs(inputs, self._inputs)
        check_shared_axes(arrays, self._shared_axes)
        if self._batch is None:
            return self._run(arrays, names)
        batch = self._batch
        pieces = [
            self._run_padded({name: array[i : i + batch] for name, array in arrays.items()}, batch, names)
            for i in range(0, n_rows(arrays), batch)
        ]
        return tuple(np.concatenate(parts) for parts in zip(*pieces, strict=True))

    def _run_padded(self, arrays: ArraysByName, batch: int, names: Sequence[str]) -> tuple[NDArray[np.generic], ...]:
        """Run up to a batch of rows as a whole one, and drop what the padding answers."""
        n = n_rows(arrays)
        padded = {name: np.concatenate([a, np.repeat(a[-1:], batch - n, axis=0)]) for name, a in arrays.items()}
        outputs = self._run(padded, names)
        for name, output in zip(names, outputs, strict=True):
            if not output.ndim or len(output) % batch:
                raise ModelError(
                    f"the {self._label} model's {name} has shape {output.shape}, which has no rows for a batch of"
                    f" {batch}; export the model with a free batch axis"
                )
        # A first axis that joins N with others, such as N * windows, is cut in proportion.
        return tuple(output[: len(output) * n // batch] for output in outputs)

    def _run(self, arrays: ArraysByName, names: Sequence[str]) -> tuple[NDArray[np.generic], ...]:
        try:
            return tuple(self._session.run(list(names), arrays))
        except _ORT_ERRORS as error:
            raise ModelError(f"the {self._label} model failed to run: {_first_line(error)}") from error


def _open_session(model: bytes, label: str, threads: int, provider: str) -> ort.InferenceSession:
    if provider not in ort.get_available_providers():
        raise ModelError(f"onnxruntime has no {provider} here; it has {', '.join(ort.get_available_providers())}")
    ort.disable_telemetry_events()  # a guard tells nobody what it guards
    options = ort.SessionOptions()
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Two sessions that spin while idle would burn the cores that the other one needs.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = _ERROR_LEVEL
    # A model that keeps weights in other files could read any file here; nothing lies below this path.
    options.add_session_config_entry("session.model_external_initializers_file_folder_path", os.devnull)
    try:
        session = ort.InferenceSession(
            model, options, providers=list(dict.fromkeys([provider, CPU])), enable_fallback=False
        )
    except _ORT_ERRORS as error:
        raise ModelError(f"onnxruntime cannot load the {label} model: {_first_line(error)}") from error
    if provider not in session.get_providers():
        raise ModelError(
            f"onnxruntime could not start {provider} for the {label} model and would run it on the CPU;"
            " install the provider's libraries, or choose the CPU"
        )
    return session


def _common_batch(inputs: Sequence[TensorSpec], label: str) -> int | None:
    """Return the fixed N that the inputs declare, None where it is free."""
    fixed = {spec.shape[0] for spec in inputs if spec.shape} - {None}
    if not inputs or len(fixed) > 1:
        taken = "; ".join(map(str, inputs)) or "none"
        raise ModelError(
            f"the {label} model's inputs are {taken}; a guarded model has one or more, whose axis 0 is the batch and"
            " of one size: export it with a free batch axis"
        )
    return next(iter(fixed), None)


def _shared_axes(inputs: Sequence[ort.NodeArg]) -> list[SharedAxis]:
    """Return the axes that several inputs call by one name, such as ``sequence``: to ONNX they are of one size."""
    places: dict[str, list[tuple[str, int]]] = {}
    for node in inputs if len(inputs) > 1 else ():
        for axis, size in enumerate(node.shape[1:], start=1):
            if isinstance(size, str):
                places.setdefault(size, []).append((node.name, axis))
    return [places_of_one for places_of_one in places.values() if len(places_of_one) > 1]


def _usable_cores() -> int:
    # Only Linux knows what this process may use; elsewhere all cores count.
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _spec(node: ort.NodeArg) -> TensorSpec:
    if node.type not in _DTYPES:
        raise ModelError(f"tensor {node.name} has type {node.type}; a guarded model takes and gives numeric tensors")
    shape = tuple(axis if isinstance(axis, int) and axis > 0 else None for axis in node.shape)
    return TensorSpec(name=node.name, dtype=_DTYPES[node.type], shape=shape)


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:300]


def _ort_errors() -> tuple[type[Exception], ...]:
    state = ort.capi.onnxruntime_pybind11_state
    found = [v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception)]
    return (*found, RuntimeError, ValueError)


_ORT_ERRORS = _ort_errors()
