"""Throughput and latency under load: guarded, beside MLServer, PyTriton and our own server without a guard."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from benchmarks.models import write_resnet18
from benchmarks.peers import MAX_BATCH, MODEL, Server, cpu_s, mlserver, ours, pytriton, started
from benchmarks.serving_cost import fitted_bundle

__all__ = ["measure"]

N_CALLERS = 16
ROUNDS = 3
SECONDS = 20.0
WARM_UP_S = 3.0
LOAD = 0.7


@dataclass(slots=True)
class _Seen:
    """What one server did: answers per second, processor seconds per answer (both by rounds), seconds per answer."""

    rates: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)
    closed: list[float] = field(default_factory=list)
    alone: list[float] = field(default_factory=list)
    poisson: list[float] = field(default_factory=list)


def measure(out: Path, *, seconds: float = SECONDS, rounds: int = ROUNDS, peers: bool = True) -> Iterator[str]:
    """Yield a table of servers, taken in turn within one run, and the goals."""
    folder = out / "resnet-18"
    bundle = folder / "cost"
    if not bundle.exists():
        fitted_bundle(write_resnet18(folder / "model.onnx"), folder)
    cores = str(len(os.sched_getaffinity(0)))
    spread = ours(bundle, name="guarded, a worker per core", flags=["--workers", cores, "--threads", "1"])
    servers = [ours(bundle), spread, ours(bundle, name="the same server, guard off", guarded=False)]
    if peers:
        made = out.parent / "peers"
        made.mkdir(exist_ok=True)
        servers += [mlserver(bundle, made), pytriton(bundle, made)]
    yield (
        f"ResNet-18, width 64, 32 x 32; requests of one row, random images as those calibrated on; batches up to"
        f" {MAX_BATCH} rows. Closed loop: {N_CALLERS} callers; Poisson: arrivals at {LOAD:.0%} of what the server's own"
        f" closed loop reached in the same round. {rounds} rounds of {seconds:.0f} s each, the servers in"
        " turn; servers and client share the cores."
    )
    seen = _all_seen(servers, out, seconds=seconds, rounds=rounds)
    yield from _closed(seen)
    yield from _goals(seen)
    yield from _poisson(seen)


def _all_seen(servers: Sequence[Server], out: Path, *, seconds: float, rounds: int) -> Mapping[str, _Seen]:
    seen = {server.name: _Seen() for server in servers}
    with ExitStack() as stack:
        logs = {server.name: out / f"server-{number}.log" for number, server in enumerate(servers)}
        processes = {server.name: stack.enter_context(started(server, logs[server.name])) for server in servers}
        for server in servers:
            _answers(server, WARM_UP_S, seed=0, callers=N_CALLERS)
        for number in range(1, rounds + 1):
            for server in _turned(servers, number):
                _observe(seen[server.name], server, processes[server.name], seconds, seed=number)
    return seen


def _turned(servers: Sequence[Server], number: int) -> Sequence[Server]:
    """Return the servers with another one first, so that none has the quiet start of every round."""
    start = number % len(servers)
    return [*servers[start:], *servers[:start]]


def _observe(seen: _Seen, server: Server, process: int, seconds: float, *, seed: int) -> None:
    before = cpu_s(process)
    closed = _answers(server, seconds, seed=seed, callers=N_CALLERS)
    seen.cpu.append((cpu_s(process) - before) / len(closed))
    seen.rates.append(len(closed) / seconds)
    seen.closed += closed
    seen.alone += _answers(server, seconds / 4, seed=seed, callers=1)
    seen.poisson += _answers(server, seconds, seed=seed, rate=LOAD * seen.rates[-1])


def _answers(server: Server, seconds: float, *, seed: int, **load: float) -> list[float]:
    """Return seconds per answer, as a client in a process of its own saw them."""
    ((kind, amount),) = load.items()
    command = [
        sys.executable, "-m", "benchmarks.load_client", server.address, MODEL,
        f"--{kind}", str(amount), "--seconds", str(seconds), "--seed", str(seed),
    ]  # fmt: skip
    done = subprocess.run(
        command, capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    answers: list[float] = json.loads(done.stdout)
    return answers


def _closed(seen: Mapping[str, _Seen]) -> Iterator[str]:
    yield "\n| closed loop | requests/s, each round | processor ms per request | p50, ms | p99 | n | one caller: p50 |"
    yield "|---|---|---|---|---|---|---|"
    for name, found in seen.items():
        (p50, p99), (alone, _) = _percentiles_ms(found.closed), _percentiles_ms(found.alone)
        rates, cpu = ", ".join(f"{rate:.0f}" for rate in found.rates), 1000 * np.median(found.cpu)
        yield f"| {name} | {rates} | {cpu:.1f} | {p50:.1f} | {p99:.1f} | {len(found.closed)} | {alone:.1f} |"


def _poisson(seen: Mapping[str, _Seen]) -> Iterator[str]:
    yield "\n| Poisson | p50, ms | p99 | p99 / p50 | n |"
    yield "|---|---|---|---|---|"
    for name, found in seen.items():
        p50, p99 = _percentiles_ms(found.poisson)
        yield f"| {name} | {p50:.1f} | {p99:.1f} | {p99 / p50:.1f} | {len(found.poisson)} |"


def _percentiles_ms(latencies: Sequence[float]) -> tuple[float, float]:
    p50, p99 = np.percentile(latencies, [50, 99]) * 1000
    return float(p50), float(p99)


def _goals(seen: Mapping[str, _Seen]) -> Iterator[str]:
    """Yield throughput and processor time over those of others: medians over rounds, in each of which both ran."""
    guarded, *others = seen.items()
    yield "\n| guarded over | throughput | each round | processor time per request |"
    yield "|---|---|---|---|"
    for name, other in others:
        rates, cpu = (np.divide(getattr(guarded[1], of), getattr(other, of)) for of in ("rates", "cpu"))
        rounds = ", ".join(f"{ratio:.2f}" for ratio in rates)
        yield f"| {name} | {np.median(rates):.2f} | {rounds} | {np.median(cpu):.2f} |"
