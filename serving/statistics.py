"""Counts and durations of one model since the server started, as ModelStatistics reports them."""

from dataclasses import dataclass, field

__all__ = ["Statistics", "Tally", "Timing"]

_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds that one answered request spent on each part of its way."""

    total_s: float
    queue_s: float
    compute_input_s: float
    compute_infer_s: float
    compute_output_s: float


@dataclass(slots=True)
class Tally:
    """How many, and how long together."""

    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        """Count one more."""
        self.count += 1
        self.ns += round(seconds * _NS_PER_S)


@dataclass(slots=True, kw_only=True)
class Statistics:
    """Running totals; used from one thread.

    ``success`` and its parts count answered requests, ``fail`` every other request for the model whatever the reason;
    ``n_rows`` counts the rows answered, ``n_runs`` the runs that answered them.
    """

    success: Tally = field(default_factory=Tally)
    fail: Tally = field(default_factory=Tally)
    queue: Tally = field(default_factory=Tally)
    compute_input: Tally = field(default_factory=Tally)
    compute_infer: Tally = field(default_factory=Tally)
    compute_output: Tally = field(default_factory=Tally)
    n_rows: int = 0
    n_runs: int = 0
    last_inference_ms: int = 0

    def add_success(self, timing: Timing, *, n_rows: int, leads: bool, now_ms: int) -> None:
        """Count an answered request, and if it leads its run, that run."""
        self.success.add(timing.total_s)
        self.queue.add(timing.queue_s)
        self.compute_input.add(timing.compute_input_s)
        self.compute_infer.add(timing.compute_infer_s)
        self.compute_output.add(timing.compute_output_s)
        self.n_rows += n_rows
        self.n_runs += leads
        self.last_inference_ms = now_ms
