"""Our server with the guard off, to measure what guarding costs: ``python -m benchmarks.unguarded BUNDLE ...``.

It runs the bundle's original by itself and says of every row that it is clean. Nothing of the product does that.
"""

import argparse
import asyncio
from pathlib import Path

import numpy as np

from guard.bundle import ORIGINAL
from guard.model import OrtModel
from guard.runtime import Guard
from guard.types import Answers, FloatArray, Inputs, Verdict
from serving.config import ServerConfig
from serving.server import serve


class _Unguarded(Guard):
    plain: OrtModel

    def run_original(self, inputs: Inputs) -> Answers:
        outputs: FloatArray = self.plain.run(inputs, [self.manifest.output.name])[0]  # type: ignore[assignment]
        return Answers(outputs=outputs, logits=outputs)

    def judge(self, inputs: Inputs, original: Answers) -> Verdict:
        del inputs
        n = len(original.outputs)
        classes, nothing = original.outputs.argmax(axis=1), np.zeros(n)
        return Verdict(
            predicted_class=classes, corrected_class=classes, p_value=nothing + 1, divergence=nothing, score=nothing,
            flagged=np.zeros(n, bool), corrected=np.zeros(n, bool), outputs=original.outputs,
        )  # fmt: skip


async def _serve(guard: Guard, config: ServerConfig) -> None:
    async with serve(guard, config):
        await asyncio.Event().wait()


def main() -> None:
    """Serve until killed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--port", type=int)
    parser.add_argument("--metrics-port", type=int)
    parser.add_argument("--model-name")
    options = parser.parse_args()
    guard = _Unguarded.load(options.bundle)
    guard.plain = OrtModel((options.bundle / ORIGINAL).read_bytes(), label="original")
    config = ServerConfig(model_name=options.model_name, port=options.port, metrics_port=options.metrics_port)
    asyncio.run(_serve(guard, config))


if __name__ == "__main__":
    main()
