"""What Prometheus sees. docs/metrics.md explains each metric; label values come from loaded models and fixed lists."""

import hashlib
from collections.abc import Callable
from typing import Literal

import grpc
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.metrics import MetricWrapperBase

from guard.manifest import Manifest, write_manifest
from guard.monitor import Monitor
from guard.types import Verdict
from serving.evidence import EvidenceCollector

__all__ = ["UNKNOWN", "Metrics", "Stage"]

UNKNOWN = "unknown"
"""The model label of requests for a model that is not served: what clients write never becomes a label."""

Stage = Literal["queue", "original", "upstream", "judge"]

_MAX_CLASSES_LISTED = 1000
_SECONDS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
_BATCH_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_P_VALUES = (0.001, 0.005, 0.01, 0.05, 0.1, 0.25, 0.5, 0.75, 1.0)


class Metrics:
    """Every metric of a server; safe to use from several threads.

    Args:
        registry: Where they are registered; a second set in one registry is refused.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        self._models: set[str] = set()
        self._requests = Counter(
            "guard_requests", "Inference requests by gRPC status.", ["model", "status"], registry=registry
        )
        self._rows = Counter("guard_rows", "Rows judged.", ["model"], registry=registry)
        self._flagged = Counter(
            "guard_flagged_rows",
            "Rows past the alert threshold, by the original's class.",
            ["model", "predicted_class"],
            registry=registry,
        )
        self._corrected = Counter(
            "guard_corrected_rows", "Rows past the correction threshold.", ["model"], registry=registry
        )
        self._failures = Counter(
            "guard_failures", "Runs that failed, by the stage that did.", ["model", "stage"], registry=registry
        )
        self._unguarded = Counter(
            "guard_unguarded_answers",
            "Answers of an upstream let through although the guard failed.",
            ["model"],
            registry=registry,
        )
        self._in_flight = Gauge(
            "guard_requests_in_flight", "Requests waiting or running.", ["model"], registry=registry
        )
        self._queue_rows = Gauge("guard_queue_rows", "Rows waiting for a run.", ["model"], registry=registry)
        self._queue_rows_limit = Gauge(
            "guard_queue_rows_limit", "Rows that may wait for a run.", ["model"], registry=registry
        )
        self._batch_rows = Histogram(
            "guard_batch_rows", "Rows of one run.", ["model"], buckets=_BATCH_ROWS, registry=registry
        )
        self._seconds = Histogram(
            "guard_stage_duration_seconds",
            "Time a request waits, and time a run of its batch takes.",
            ["model", "stage"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._p_values = Histogram(
            "guard_p_value", "p-values of the rows judged.", ["model"], buckets=_P_VALUES, registry=registry
        )
        self._audit = Counter(
            "guard_audit_records", "Audit records by what became of them.", ["model", "outcome"], registry=registry
        )
        self._target_fpr = Gauge(
            "guard_target_fpr",
            "False-positive rate that a threshold was fitted for.",
            ["model", "threshold"],
            registry=registry,
        )
        self._written_at = Gauge(
            "guard_bundle_written_timestamp_seconds", "When the bundle was written.", ["model"], registry=registry
        )
        self._evidence = EvidenceCollector(max_classes_listed=_MAX_CLASSES_LISTED)
        registry.register(self._evidence)
        self._model_info = Info("guard_model", "The model that is guarded.", ["model"], registry=registry)
        self._bundle_info = Info("guard_bundle", "The bundle that guards it.", ["model"], registry=registry)

    def add_model(self, model: str, manifest: Manifest, *, version: str) -> None:
        """Start the series of a model, at zero where an alert would miss their first step."""
        self._models.add(model)
        self._model_info.labels(model).info({"version": version, "sha256": str(manifest.model.get("sha256", ""))})
        self._bundle_info.labels(model).info(_describe(manifest))
        for name, threshold in manifest.thresholds.items():
            self._target_fpr.labels(model, name).set(threshold.target_fpr)
        for counter in (self._rows, self._corrected):
            counter.labels(model)
        for stage in ("original", "upstream", "judge"):
            self._failures.labels(model, stage)
        self._unguarded.labels(model)
        for outcome in ("complete", "without_evidence", "lost"):
            self._audit.labels(model, outcome)
        if manifest.n_classes <= _MAX_CLASSES_LISTED:
            for predicted_class in range(manifest.n_classes):
                self._flagged.labels(model, str(predicted_class))
        self._requests.labels(model, grpc.StatusCode.OK.name)

    def remove_model(self, model: str) -> None:
        """End the series of a model that is served no more."""
        self._models.discard(model)
        self._evidence.forget(model)
        for metric in vars(self).values():
            if isinstance(metric, MetricWrapperBase) and "model" in metric._labelnames:
                metric.remove_by_labels({"model": model})

    def watch_model(self, model: str, monitor: Monitor, *, written_at: float | None) -> None:
        """Start the series that tell whether a model is attacked and whether its calibration still holds.

        Args:
            model: One that was added.
            monitor: Whoever judges feeds it; it takes the place of an earlier one.
            written_at: When its bundle was written, in seconds since the epoch, where that is known.
        """
        self._evidence.watch(model, monitor)
        if written_at is not None:
            self._written_at.labels(model).set(written_at)

    def count_request(self, model: str, status: grpc.StatusCode) -> None:
        """Count one inference request; a model that is not served counts as unknown."""
        self._requests.labels(model if model in self._models else UNKNOWN, status.name).inc()

    def load_of(self, model: str) -> Callable[..., None]:
        """Return what to tell, whenever that changes, how many requests wait or run, and how many rows wait.

        Each is for one bundle of the model: while one takes another's place, the model's load is the sum of both.
        """
        before = [0, 0]

        def tell(n_requests: int, n_waiting_rows: int = 0) -> None:
            self._in_flight.labels(model).inc(n_requests - before[0])
            self._queue_rows.labels(model).inc(n_waiting_rows - before[1])
            before[:] = n_requests, n_waiting_rows

        tell(0)
        return tell

    def set_queue_limit(self, model: str, n_rows: int) -> None:
        """Say how many rows may wait."""
        self._queue_rows_limit.labels(model).set(n_rows)

    def observe_batch(self, model: str, n_rows: int) -> None:
        """Count one run of the model and its rows."""
        self._batch_rows.labels(model).observe(n_rows)

    def observe_stage(self, model: str, stage: Stage, seconds: float) -> None:
        """Say how long a request spent in a stage."""
        self._seconds.labels(model, stage).observe(seconds)

    def count_failure(self, model: str, stage: Stage) -> None:
        """Count a run that failed."""
        self._failures.labels(model, stage).inc()

    def count_unguarded(self, model: str) -> None:
        """Count an answer that was let through although the guard failed."""
        self._unguarded.labels(model).inc()

    def count_audit_record(self, model: str, outcome: str) -> None:
        """Count an audit record that was written, with or without evidence, or lost."""
        self._audit.labels(model, outcome).inc()

    def count_verdict(self, model: str, verdict: Verdict) -> None:
        """Count the rows of one verdict."""
        self._rows.labels(model).inc(len(verdict.flagged))
        self._corrected.labels(model).inc(int(verdict.corrected.sum()))
        for predicted_class in verdict.predicted_class[verdict.flagged].tolist():
            self._flagged.labels(model, str(predicted_class)).inc()
        p_values = self._p_values.labels(model)
        for p_value in verdict.p_value.tolist():
            p_values.observe(p_value)


def _describe(manifest: Manifest) -> dict[str, str]:
    return {
        "digest": hashlib.sha256(write_manifest(manifest)).hexdigest(),
        "format_version": str(manifest.format_version),
        "method": str(manifest.method.get("name", "")),
        "score": manifest.score,
    }
