"""The monitors of the models that are served, as Prometheus reads them: evidence is worked out when it is asked for."""

from collections.abc import Iterator

from prometheus_client.core import GaugeMetricFamily
from prometheus_client.registry import Collector

from guard.monitor import Monitor

__all__ = ["EvidenceCollector"]

_WORTH_A_SERIES = 1.0  # evidence that says more than nothing


class EvidenceCollector(Collector):
    """Keeps a monitor for each model and shows what they have gathered; safe to use from several threads.

    Args:
        max_classes_listed: Models of more classes show only those with evidence of more than nothing.
    """

    def __init__(self, *, max_classes_listed: int) -> None:
        self._max_classes_listed = max_classes_listed
        self._monitors: dict[str, Monitor] = {}

    def watch(self, model: str, monitor: Monitor) -> None:
        """Show this monitor as the model's; an earlier one is forgotten."""
        self._monitors[model] = monitor

    def forget(self, model: str) -> None:
        """Show nothing of a model any more."""
        self._monitors.pop(model, None)

    def describe(self) -> list[GaugeMetricFamily]:
        """Return the metrics without values, so that registering reads no monitor."""
        return list(_families())

    def collect(self) -> Iterator[GaugeMetricFamily]:
        """Yield the metrics with the evidence of this moment."""
        triggers, by_class, drift = _families()
        for model, monitor in list(self._monitors.items()):
            reading = monitor.read()
            triggers.add_metric([model], reading.triggers)
            drift.add_metric([model], reading.drift)
            lists_all = len(reading.triggers_by_class) <= self._max_classes_listed
            for predicted_class, evidence in enumerate(reading.triggers_by_class.tolist()):
                if lists_all or evidence > _WORTH_A_SERIES:
                    by_class.add_metric([model, str(predicted_class)], evidence)
        yield from (triggers, by_class, drift)


def _families() -> tuple[GaugeMetricFamily, GaugeMetricFamily, GaugeMetricFamily]:
    return (
        GaugeMetricFamily("guard_trigger_evidence", "Evidence of triggered rows; 1000 is an alarm.", labels=["model"]),
        GaugeMetricFamily(
            "guard_class_trigger_evidence",
            "The same, of rows sent to one class.",
            labels=["model", "predicted_class"],
        ),
        GaugeMetricFamily("guard_drift_evidence", "Evidence that clean rows have changed.", labels=["model"]),
    )
