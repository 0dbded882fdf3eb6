"""Metrics count what the guard did, take no label from clients, and are all explained in docs/metrics.md."""

import os
import re
import urllib.request
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from bundles import CLEAN, TRIGGERED, manifest, tiny_bundle
from prometheus_client import CollectorRegistry
from servers import TIMEOUT_S, infer_request, live
from streams import verdict

from guard import Guard
from guard.monitor import Monitor, Reference
from guard.types import TensorSpec
from serving.metrics import Metrics

DOCS = Path(__file__).parents[1] / "docs" / "metrics.md"


@pytest.fixture(scope="module")
def server():
    """Serve, after one batch with a triggered row, one bad request and one for another model."""
    with live() as running:
        running.infer(np.concatenate([CLEAN, TRIGGERED]))
        running.refuses(infer_request([[np.nan, 0, 0]]))
        running.refuses(infer_request(CLEAN, model="somebody-elses"))
        yield running


def test_rows_flags_and_requests_are_counted(server):
    assert server.sample("guard_rows_total") == 2
    assert server.sample("guard_flagged_rows_total", predicted_class="0") == 1
    assert server.sample("guard_corrected_rows_total") == 1
    assert server.sample("guard_requests_total", status="OK") == 1
    assert server.sample("guard_requests_total", status="INVALID_ARGUMENT") == 1
    assert server.sample("guard_requests_in_flight") == 0


def test_series_that_alerts_need_start_at_zero(server):
    assert server.sample("guard_flagged_rows_total", predicted_class="2") == 0
    assert server.sample("guard_failures_total", stage="judge") == 0


def test_an_unknown_model_never_becomes_a_label(server):
    models = {s.labels["model"] for metric in server.registry.collect() for s in metric.samples}
    assert models == {"tiny", "unknown"}
    assert server.sample("guard_requests_total", model="unknown", status="NOT_FOUND") == 1


def test_stages_are_timed_apart(server):
    n_timed = {
        stage: server.sample("guard_stage_duration_seconds_count", stage=stage)
        for stage in ("queue", "original", "judge")
    }
    # The request with NaN has its turn, and is refused before a model runs.
    assert n_timed == {"queue": 2, "original": 1, "judge": 1}


def test_runs_are_counted_by_their_rows(server):
    assert server.sample("guard_batch_rows_count") == 1
    assert server.sample("guard_batch_rows_sum") == 2
    assert server.sample("guard_queue_rows") == 0


def test_p_values_fall_into_buckets_that_a_threshold_can_be_read_from(server):
    assert server.sample("guard_p_value_bucket", le="0.005") == 1
    assert server.sample("guard_p_value_bucket", le="1.0") == 2


def test_evidence_is_shown_for_the_model_and_each_class():
    with live() as running:
        before = running.sample("guard_class_trigger_evidence", predicted_class="0")
        running.infer(np.concatenate([TRIGGERED] * 64))
        assert running.sample("guard_trigger_evidence") > 1000
        assert running.sample("guard_class_trigger_evidence", predicted_class="0") > 1000 * before
        assert running.sample("guard_class_trigger_evidence", predicted_class="1") < 1
        assert running.sample("guard_drift_evidence") < 2


def test_the_age_of_a_bundle_is_told_where_it_was_read_from_a_folder(tmp_path):
    bundle = tiny_bundle(tmp_path)
    os.utime(bundle / "manifest.json", (1e9, 1e9))
    with live(Guard.load(bundle)) as running:
        assert running.sample("guard_bundle_written_timestamp_seconds") == 1e9


def test_promises_and_origins_are_told(server):
    assert server.sample("guard_target_fpr", threshold="alert") == 0.01
    assert server.sample("guard_target_fpr", threshold="correct") == 0.1
    assert server.sample("guard_model_info", version="1", sha256="0" * 64) == 1
    (bundle,) = (m for m in server.registry.collect() if m.name == "guard_bundle")
    labels = bundle.samples[0].labels
    assert (labels["method"], labels["score"], labels["format_version"]) == ("by-hand", "divergence", "1")
    assert re.fullmatch("[0-9a-f]{64}", labels["digest"])


def test_the_metrics_port_answers_prometheus(server):
    address = f"http://127.0.0.1:{server.running.metrics_port}/metrics"
    with urllib.request.urlopen(address, timeout=TIMEOUT_S) as answer:
        assert b'guard_flagged_rows_total{model="tiny",predicted_class="0"} 1.0' in answer.read()


def exposed_names(registry):
    suffix = {"counter": "_total", "info": "_info"}
    return {f"{metric.name}{suffix.get(metric.type, '')}": metric.type for metric in registry.collect()}


def test_the_page_explains_every_metric_with_its_type_and_no_other(server):
    rows = re.findall(r"^\| `(guard_\w+)` \| (\w+) \|", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert dict(rows) == exposed_names(server.registry)


def test_a_second_set_in_one_registry_is_refused():
    registry = CollectorRegistry()
    Metrics(registry)
    with pytest.raises(ValueError, match="Duplicated"):
        Metrics(registry)


def test_a_model_of_very_many_classes_lists_only_those_that_were_flagged():
    registry = CollectorRegistry()
    many = replace(manifest(), output=TensorSpec(name="y", dtype="float32", shape=(None, 1001)))
    Metrics(registry).add_model("m", many, version="1")
    assert registry.get_sample_value("guard_flagged_rows_total", {"model": "m", "predicted_class": "0"}) is None


def test_of_very_many_classes_only_those_with_evidence_are_listed():
    registry = CollectorRegistry()
    monitor = Monitor(Reference(scores=np.linspace(0, 1, 1000)), n_classes=1001)
    Metrics(registry).watch_model("m", monitor, written_at=None)
    monitor.update(verdict(np.full(160, 2.0), [1000] * 160))
    found = {s.labels["predicted_class"] for m in registry.collect() if "class_trigger" in m.name for s in m.samples}
    assert found == {"1000"}


def test_statuses_are_those_of_grpc():
    registry = CollectorRegistry()
    Metrics(registry).count_request("x", grpc.StatusCode.UNAVAILABLE)
    assert registry.get_sample_value("guard_requests_total", {"model": "unknown", "status": "UNAVAILABLE"}) == 1
