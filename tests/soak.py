"""Mixed traffic against a guard-serve process, and what it costs the process over time."""

import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import grpc
import numpy as np
from servers import SERVICE
from wire_fuzz import request_of

from guard import Guard
from serving._pb import open_inference_pb2 as pb

__all__ = ["Soak", "usage"]

_TIMEOUT_S = 60
_MAX_ROWS = 8


class Soak:
    """Clients that ask a server about digits until they are told to stop.

    Each keeps to one kind of traffic: clean or triggered rows, which must be answered as the guard itself answers;
    malformed requests; and callers who hang up or whose deadline is past before the answer.

    Args:
        channel: To the server.
        model: What the server calls the model.
        guard: The bundle that the server serves.
        clean: Clean inputs (N, 1, 8, 8).
        triggered: Triggered inputs (N, 1, 8, 8).
    """

    def __init__(self, channel: grpc.Channel, model: str, guard: Guard, clean: np.ndarray, triggered: np.ndarray):
        self._ask = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        self._model = model
        self._guard = guard
        self._sets = {"clean": clean, "triggered": triggered}
        self._expected = {kind: guard(inputs) for kind, inputs in self._sets.items()}
        self._stop = threading.Event()
        self.counts: Counter[str] = Counter()
        self.problems: list[str] = []

    def run(self, seconds: float, watch: Callable[[], None], *, every_s: float) -> None:
        """Send traffic for so long, and look at the server every so often."""
        actions = [lambda rng: self._judged("clean", rng), lambda rng: self._judged("triggered", rng), self._malformed,
                   self._hung_up, self._late]  # fmt: skip
        threads = [threading.Thread(target=self._repeat, args=(action, i)) for i, action in enumerate(actions)]
        for thread in threads:
            thread.start()
        end = time.monotonic() + seconds
        while time.monotonic() < end and not self.problems:
            time.sleep(every_s)
            watch()
        self._stop.set()
        for thread in threads:
            thread.join(_TIMEOUT_S)
        assert not any(thread.is_alive() for thread in threads), "a request was lost: its caller still waits"

    def _repeat(self, action: Callable[[np.random.Generator], str], seed: int) -> None:
        rng = np.random.default_rng(seed)
        while not self._stop.is_set():
            try:
                self.counts[action(rng)] += 1
            except Exception as error:  # noqa: BLE001 -- told by the thread that asserts
                self.problems.append(f"{type(error).__name__}: {error}")
                return

    def _judged(self, kind: str, rng: np.random.Generator) -> str:
        rows = rng.integers(len(self._sets[kind]), size=rng.integers(1, _MAX_ROWS + 1))
        call = self._ask.future(self._request(kind, rows), timeout=_TIMEOUT_S)
        assert call.code() is grpc.StatusCode.OK, f"{kind} rows ended with {call.code()}: {call.details()}"
        response = pb.ModelInferResponse.FromString(call.result())
        found = dict(zip((o.name for o in response.outputs), response.raw_output_contents, strict=True))
        expected = self._expected[kind]
        outputs = np.frombuffer(found[response.outputs[0].name], "<f4").reshape(len(rows), -1)
        np.testing.assert_allclose(outputs, expected.outputs[rows], rtol=1e-3, atol=1e-3)
        np.testing.assert_array_equal(np.frombuffer(found["guard_flagged"], "?"), expected.flagged[rows])
        return kind

    def _malformed(self, rng: np.random.Generator) -> str:
        code = self._ask.future(request_of(int(rng.integers(2**31))), timeout=_TIMEOUT_S).code()
        assert code not in (grpc.StatusCode.OK, grpc.StatusCode.INTERNAL, grpc.StatusCode.UNKNOWN), f"{code}"
        return "malformed"

    def _hung_up(self, rng: np.random.Generator) -> str:
        call = self._ask.future(self._request("triggered", np.arange(_MAX_ROWS)), timeout=_TIMEOUT_S)
        time.sleep(rng.uniform(0, 0.01))
        call.cancel()
        assert call.code() in (grpc.StatusCode.CANCELLED, grpc.StatusCode.OK), f"{call.code()}"
        return "hung up"

    def _late(self, rng: np.random.Generator) -> str:
        call = self._ask.future(self._request("clean", np.arange(_MAX_ROWS)), timeout=rng.uniform(1e-4, 0.01))
        assert call.code() in (grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.OK), f"{call.code()}"
        return "late"

    def _request(self, kind: str, rows: np.ndarray) -> bytes:
        inputs = self._sets[kind][rows]
        (spec,) = self._guard.manifest.inputs
        tensor = pb.ModelInferRequest.InferInputTensor(name=spec.name, datatype="FP32", shape=inputs.shape)
        raw = [inputs.astype("<f4").tobytes()]
        return pb.ModelInferRequest(model_name=self._model, inputs=[tensor], raw_input_contents=raw).SerializeToString()


def usage(pid: int) -> dict[str, int]:
    """Return a process's resident KiB, threads and open files."""
    fields = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return {
        "rss_kib": int(fields["VmRSS"].split()[0]),
        "threads": int(fields["Threads"]),
        "files": len(list(Path(f"/proc/{pid}/fd").iterdir())),
    }
