"""The evidence that metrics show is of the bundle that serves, whoever is still being answered by an earlier one."""

import asyncio

import numpy as np
from bundles import TRIGGERED
from prometheus_client import CollectorRegistry
from servers import tiny_guard
from streams import clean, monitor

from serving.config import ServerConfig
from serving.endpoint import Endpoint
from serving.evidence import EvidenceCollector
from serving.metrics import Metrics


async def ask(endpoint, rows):
    await endpoint.infer(lambda: {"x": rows}, n_rows=len(rows))
    await endpoint.runner.close()


def test_rows_that_a_replaced_bundle_judges_are_no_evidence_against_the_new_one():
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    old, new = (Endpoint(tiny_guard(), ServerConfig(), metrics=metrics) for _ in range(2))
    shown = []
    for endpoint in (old, new):
        asyncio.run(ask(endpoint, np.repeat(TRIGGERED, 64, axis=0)))
        shown.append(registry.get_sample_value("guard_trigger_evidence", {"model": "tiny"}))
    assert shown[0] < 1000 < shown[1]


def test_nothing_is_shown_of_a_model_that_is_forgotten():
    collector, rng = EvidenceCollector(max_classes_listed=1000), np.random.default_rng(0)
    watched = monitor(rng)
    watched.update(clean(rng, 32))
    collector.watch("m", watched)
    assert sum(len(metric.samples) for metric in collector.collect()) == 12
    collector.forget("m")
    assert sum(len(metric.samples) for metric in collector.collect()) == 0
