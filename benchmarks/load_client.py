"""A client that loads a v2 server and says how long answers took: closed loop, or arrivals of a Poisson process.

Runs in a process of its own: ``python -m benchmarks.load_client ADDRESS MODEL (--callers N | --rate R) --seconds S``
prints seconds per answer as JSON.
"""

import argparse
import asyncio
import json
import time
from collections.abc import Iterator

import numpy as np
import tritonclient.grpc as triton_messages
import tritonclient.grpc.aio as triton

_N_INPUTS = 256
_IMAGE = (3, 32, 32)


async def closed_loop(
    client: triton.InferenceServerClient, model: str, *, n_callers: int, seconds: float, seed: int
) -> list[float]:
    """Return seconds per answer of callers who each send one row as soon as they have their last answer."""
    end = time.perf_counter() + seconds
    latencies: list[float] = []

    async def call(inputs: Iterator[triton_messages.InferInput]) -> None:
        while (begun := time.perf_counter()) < end:
            await client.infer(model, [next(inputs)])
            latencies.append(time.perf_counter() - begun)

    await asyncio.gather(*(call(_inputs(seed * 1000 + caller)) for caller in range(n_callers)))
    return latencies


async def poisson(
    client: triton.InferenceServerClient, model: str, *, rate: float, seconds: float, seed: int
) -> list[float]:
    """Return seconds per answer from its arrival on, whether or not earlier ones were answered by then."""
    rng, inputs = np.random.default_rng(seed), _inputs(seed)
    begun = time.perf_counter()
    arrivals = begun + np.cumsum(rng.exponential(1 / rate, size=max(1, round(rate * seconds))))

    async def call(arrival: float) -> float:
        await asyncio.sleep(max(0.0, arrival - time.perf_counter()))
        await client.infer(model, [next(inputs)])
        return time.perf_counter() - arrival

    return list(await asyncio.gather(*(call(arrival) for arrival in arrivals.tolist())))


def _inputs(seed: int) -> Iterator[triton_messages.InferInput]:
    """Yield one row of random pixels after another, made before they are needed."""
    made = []
    for pixels in np.random.default_rng(seed).random((_N_INPUTS, 1, *_IMAGE), dtype=np.float32):
        tensor = triton_messages.InferInput("input", pixels.shape, "FP32")
        tensor.set_data_from_numpy(pixels)
        made.append(tensor)
    while True:
        yield from made


async def _load(options: argparse.Namespace) -> list[float]:
    async with triton.InferenceServerClient(options.address) as client:
        if options.rate is None:
            return await closed_loop(
                client, options.model, n_callers=options.callers, seconds=options.seconds, seed=options.seed
            )
        return await poisson(client, options.model, rate=options.rate, seconds=options.seconds, seed=options.seed)


def main() -> None:
    """Load a server and print what its answers took."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("address")
    parser.add_argument("model")
    load = parser.add_mutually_exclusive_group(required=True)
    load.add_argument("--callers", type=int)
    load.add_argument("--rate", type=float)
    parser.add_argument("--seconds", type=float, required=True)
    parser.add_argument("--seed", type=int, default=0)
    print(json.dumps(asyncio.run(_load(parser.parse_args()))))


if __name__ == "__main__":
    main()
