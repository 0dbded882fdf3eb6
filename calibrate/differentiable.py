"""An ONNX graph as a differentiable torch function."""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import onnx
import torch
from torch import Tensor

from calibrate.gradients import NoGradientError, in_one_line
from calibrate.operators import Node, operator_of
from calibrate.operators.model import declared_batch, inline, read_nodes, read_weights
from guard.errors import GuardError, InputError
from guard.rows import each, n_rows

__all__ = ["DEVICES", "Change", "DifferentiableModel", "Precision", "Tensors", "check_device", "fast_precision"]

Precision = Literal["bfloat16", "float32"]
"""In what float32 weights and inputs are computed with."""

DEVICES = ("cpu", "cuda")

Tensors = Tensor | Mapping[str, Tensor]
"""A model's inputs: one tensor, or one by name for a graph with several inputs."""

Change = Callable[[Tensor], Tensor]
"""Put on a tensor right after it is made; every consumer sees what it returns."""

_NO_CHANGES: Mapping[str, Change] = MappingProxyType({})
_IMAGE_AXES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class _Step:
    node: Node
    last_used: frozenset[str]


def check_device(device: str) -> None:
    """Refuse a device that torch cannot compute on.

    Raises:
        InputError: It is none of DEVICES, or CUDA, of which there is none here.
    """
    if device not in DEVICES:
        raise InputError(f"device is {device!r}; choose one of {', '.join(DEVICES)}")
    if device == "cuda" and not torch.cuda.is_available():
        raise InputError("device is cuda, but torch finds no CUDA device here; install torch for CUDA, or use cpu")


def fast_precision(device: str) -> Precision:
    """Return bfloat16 where the device multiplies it in hardware, else float32."""
    if torch.device(device).type == "cuda":
        return "bfloat16" if torch.cuda.is_bf16_supported(including_emulation=False) else "float32"
    capabilities = torch.cpu.get_capabilities()
    return "bfloat16" if capabilities.get("avx512_bf16") or capabilities.get("amx_bf16") else "float32"


class DifferentiableModel:
    """Run an ONNX graph in torch, forward and backward, with frozen weights.

    What depends on no input is computed once, at construction. ``fixed_batch`` is the N that the graph's inputs
    declare, None where it is free: a graph exported for one N may have it written into its shapes.

    Args:
        model: A model of opset 11 or newer.
        device: Where to compute, as torch names it.
        precision: ``bfloat16`` halves the memory and, where the hardware multiplies it (see fast_precision), the time
            at least; answers keep about three digits. Inputs and gradients are float32 all the same.

    Raises:
        NoGradientError: The graph holds an operator, or a form of one, that is not known here, or a node of
            constants fails.
    """

    def __init__(self, model: onnx.ModelProto, *, device: str = "cpu", precision: Precision = "float32") -> None:
        model = inline(model)
        nodes = read_nodes(model)
        self._device = torch.device(device)
        self._narrows = precision == "bfloat16"
        self._constants = {n: _placed(w, self._device) for n, w in read_weights(model.graph.initializer).items()}
        self.input_names = tuple(i.name for i in model.graph.input if i.name not in self._constants)
        self.fixed_batch = declared_batch(i for i in model.graph.input if i.name in self.input_names)
        self._nodes = self._fold(nodes)
        self._constants = {name: self._laid_out(value) for name, value in self._constants.items()}
        made = (name for node in self._nodes for name in node.outputs if name)
        self._variables = frozenset(self.input_names).union(made)

    @torch.no_grad()
    def _fold(self, nodes: Sequence[Node]) -> tuple[Node, ...]:
        """Compute the nodes that depend on no input; return the others."""
        left = []
        for node in nodes:
            if all(name in self._constants for name in node.inputs if name):
                made = self._run(node, self._constants)
                self._constants.update((name, _placed(value, self._device)) for name, value in made.items())
            else:
                left.append(node)
        return tuple(left)

    def __call__(
        self, inputs: Tensors, *, outputs: Sequence[str], at: Mapping[str, Change] = _NO_CHANGES
    ) -> tuple[Tensor, ...]:
        """Compute tensors of the graph, and nothing that they do not need.

        Args:
            inputs: One tensor for a graph with one input, else one per input name.
            outputs: Names of tensors anywhere in the graph.
            at: By tensor name, what to put in place of a tensor; consumers and outputs see the result.

        Returns:
            One tensor per name in ``outputs``.

        Raises:
            NoGradientError: A node fails, or a change; the message names it.
            InputError: An input of the graph is missing.
            ValueError: A name in ``outputs`` or ``at`` is in no place where it could take effect.
        """
        self._check_names(outputs, at)
        values = self._changed(self._read_inputs(inputs), at)
        for step in _plan(self._nodes, self._constants, outputs):
            values.update(self._changed(self._run(step.node, values), at))
            for name in step.last_used:
                values.pop(name, None)
        found = (values[name] if name in values else self._constants[name] for name in outputs)
        return tuple(value.float() if self._narrows and value.dtype == torch.bfloat16 else value for value in found)

    def rows(
        self, inputs: Tensors, *, output: str, at: Mapping[str, Change] = _NO_CHANGES, size: int | None = None
    ) -> Tensor:
        """Compute a tensor (N, ...) of the graph for any number of rows, whatever N the graph declares.

        Args:
            inputs: N rows, as a call takes them.
            output: Its name.
            at: As for a call. Where rows are missing from the last batch, changes see copies of the last one too.
            size: Rows at a time; the N that the graph declares, or all of them, unless given.
        """
        n = n_rows(inputs)
        size = size or self.fixed_batch or max(1, n)
        batches = (_batch(inputs, start, size) for start in range(0, max(1, n), size))
        return torch.cat([self(batch, outputs=[output], at=at)[0] for batch in batches])[:n]

    def _changed(self, values: Mapping[str, Tensor], at: Mapping[str, Change]) -> dict[str, Tensor]:
        """Apply changes, and bring what is wider to the precision asked for."""
        changed = {name: _put_on(name, value, at[name]) if name in at else value for name, value in values.items()}
        return {name: self._narrowed(value) for name, value in changed.items()}

    def _narrowed(self, value: Tensor) -> Tensor:
        return value.bfloat16() if self._narrows and value.dtype == torch.float32 else value

    def _laid_out(self, value: Tensor) -> Tensor:
        """Store images and kernels channel by channel innermost, in which torch convolves about twice as fast."""
        value = self._narrowed(value)
        return value.contiguous(memory_format=torch.channels_last) if value.dim() == _IMAGE_AXES else value

    def _check_names(self, outputs: Iterable[str], at: Iterable[str]) -> None:
        unknown = sorted(set(outputs) - self._variables - self._constants.keys())
        if unknown:
            raise ValueError(f"no tensor of the graph is called {unknown}")
        fixed = sorted(set(at) - self._variables)
        if fixed:
            raise ValueError(f"{fixed} in `at` must name tensors that depend on an input")

    def _read_inputs(self, inputs: Tensors) -> dict[str, Tensor]:
        if isinstance(inputs, Tensor):
            if len(self.input_names) != 1:
                raise InputError(f"one tensor given; the model takes {self.input_names}: pass a mapping")
            inputs = {self.input_names[0]: inputs}
        missing = sorted(set(self.input_names) - inputs.keys())
        if missing:
            raise InputError(f"inputs {missing} are missing; the model takes {self.input_names}")
        return {name: self._laid_out(inputs[name].to(self._device)) for name in self.input_names}

    def _run(self, node: Node, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        operator = operator_of(node)
        if operator is None:  # of what read_nodes lets pass that is an If alone
            return self._run_branch(node, values)
        arguments = [self._argument(name, values) for name in node.inputs]
        try:
            results = operator(node, *_together(arguments, self._device))
        except GuardError:
            raise
        except Exception as error:
            raise NoGradientError(f"{node} fails in torch: {in_one_line(error)}") from error
        results = (results,) if isinstance(results, Tensor) else results
        return {name: result for name, result in zip(node.outputs, results, strict=False) if name}

    def _run_branch(self, node: Node, values: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
        """Run the branch that the condition chooses; no change reaches into it."""
        condition = self._argument(node.inputs[0], values)
        branch = node.branches["else_branch" if condition is None or not condition.all() else "then_branch"]
        inner = dict(values)
        for step in branch.nodes:
            inner.update(self._changed(self._run(step, inner), _NO_CHANGES))
        given = (inner[name] if name in inner else self._constants[name] for name in branch.outputs)
        return dict(zip(node.outputs, given, strict=True))

    def _argument(self, name: str, values: Mapping[str, Tensor]) -> Tensor | None:
        if not name:
            return None
        return values[name] if name in values else self._constants[name]


def _put_on(name: str, value: Tensor, change: Change) -> Tensor:
    try:
        return change(value)
    except RuntimeError as error:
        raise NoGradientError(f"what is put on the tensor '{name}' fails in torch: {in_one_line(error)}") from error


def _batch(inputs: Tensors, start: int, size: int) -> Tensors:
    """Return this many rows from one on, the last repeated where there are no more."""

    def rows(tensor: Tensor) -> Tensor:
        found = tensor[start : start + size]
        if len(found) in (0, size):
            return found
        return torch.cat([found, found[-1:].expand(size - len(found), *found.shape[1:])])

    return each(rows, inputs)


def _placed(constant: Tensor, device: torch.device) -> Tensor:
    """Bring a constant to the device, unless it is a shape or an index, which the host reads."""
    return constant.to(device) if constant.is_floating_point() else constant


def _together(arguments: Sequence[Tensor | None], device: torch.device) -> Sequence[Tensor | None]:
    """Bring arguments to one device: shapes are computed on the host, whatever the weights are on."""
    if len({argument.device.type for argument in arguments if argument is not None}) <= 1:
        return arguments
    return [None if argument is None else argument.to(device) for argument in arguments]


def _plan(nodes: Sequence[Node], constants: Collection[str], outputs: Sequence[str]) -> list[_Step]:
    """List the nodes that the outputs need, each with the tensors that nobody needs after it."""
    needed = set(outputs)
    steps = []
    for node in reversed(nodes):
        if needed.isdisjoint(node.outputs):
            continue
        touched = {*node.inputs, *node.outputs}.difference(constants)
        steps.append(_Step(node=node, last_used=frozenset(touched - needed)))
        needed |= touched
    steps.reverse()
    return steps
