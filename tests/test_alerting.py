"""Alerts fire under an attack on a real server and are silent before, in a real Prometheus; the dashboard has data."""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from bundles import CAP, tiny_bundle
from servers import Live, live

from examples.local_prometheus import LocalPrometheus, prometheus
from guard import Guard

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "deploy"
DASHBOARD = json.loads((DEPLOY / "grafana/dashboard.json").read_text())
EXPRESSIONS = [target["expr"] for panel in DASHBOARD["panels"] for target in panel["targets"]]
EXPRESSIONS += [annotation["expr"] for annotation in DASHBOARD["annotations"]["list"]]
N_CLEAN, N_ATTACKED, ATTACKED_CLASS = 2000, 1000, 1
WAIT_S = 90

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="needs prometheus and promtool; deploy/prometheus/install.sh installs them",
)


@dataclass(frozen=True)
class Watched:
    """A server that was attacked, the Prometheus that watches it, and what that fired before."""

    server: Live
    prometheus: LocalPrometheus
    fired_before: list[str]


def rows_for_tiny(rng, n, *, attacked_share):
    """Return rows that lose as much margin as clean scores do, but for a share that loses far more towards a class."""
    rows = np.zeros((n, 3), dtype=np.float32)
    attacked = rng.random(n) < attacked_share
    classes = np.where(attacked, ATTACKED_CLASS, rng.integers(0, 3, n))
    rows[np.arange(n), classes] = CAP + np.where(attacked, 5, 0.01 * rng.random(n))
    return rows


def send(server, rows):
    for start in range(0, len(rows), 50):
        server.infer(rows[start : start + 50])


def firing(watching):
    return [alert.name for alert in watching.alerts() if alert.state == "firing"]


def settle(watching, n_rows):
    """Wait until Prometheus has read that many rows, and evaluated its rules twice after that."""
    assert watching.wait(lambda: watching.value("sum(guard_rows_total)") >= n_rows, timeout_s=WAIT_S)
    seen = watching.evaluations()
    assert watching.wait(lambda: watching.evaluations() >= seen + 2, timeout_s=WAIT_S)


@pytest.fixture(scope="module")
def watched(tmp_path_factory) -> Iterator[Watched]:
    """Serve clean rows, then attack."""
    rng = np.random.default_rng(0)
    with live(Guard.load(tiny_bundle(tmp_path_factory.mktemp("tiny")))) as server:
        target = f"127.0.0.1:{server.running.metrics_port}"
        with prometheus(target, tmp_path_factory.mktemp("prometheus")) as watching:
            send(server, rows_for_tiny(rng, N_CLEAN, attacked_share=0))
            settle(watching, N_CLEAN)
            before = firing(watching)
            send(server, rows_for_tiny(rng, N_ATTACKED, attacked_share=0.1))
            settle(watching, N_CLEAN + N_ATTACKED)
            yield Watched(server=server, prometheus=watching, fired_before=before)


@needs_prometheus
def test_clean_traffic_is_silent(watched):
    assert watched.fired_before == []


@needs_prometheus
def test_an_attack_on_a_real_server_fires_in_a_real_prometheus(watched):
    assert watched.prometheus.wait(
        lambda: {"TriggerGuardAttack", "TriggerGuardOneClass"} <= set(firing(watched.prometheus)), timeout_s=WAIT_S
    )
    named = {alert.name: alert for alert in watched.prometheus.alerts()}
    assert named["TriggerGuardOneClass"].labels["predicted_class"] == str(ATTACKED_CLASS)
    assert named["TriggerGuardAttack"].labels["model"] == "tiny"
    assert "TriggerGuardCalibrationDrifting" not in named


@needs_prometheus
@pytest.mark.parametrize("expression", EXPRESSIONS)
def test_every_query_of_the_dashboard_finds_data(watched, expression):
    asked = expression.replace("$__rate_interval", "1m").replace("$model", ".*")
    assert watched.prometheus.wait(lambda: bool(watched.prometheus.query(asked)), timeout_s=WAIT_S), asked


@needs_prometheus
@pytest.mark.parametrize(
    "arguments",
    [("check", "rules", "rules.yml"), ("check", "config", "prometheus.yml"), ("test", "rules", "rules_test.yml")],
    ids=" ".join,
)
def test_promtool_finds_the_rules_right(arguments):
    done = subprocess.run(
        ["promtool", *arguments], cwd=DEPLOY / "prometheus", capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_test_and_a_place_in_the_page():
    alerts = re.findall(r"alert: (\w+)", (DEPLOY / "prometheus/rules.yml").read_text())
    tested = set(re.findall(r"alertname: (\w+)\n\s+exp_alerts", (DEPLOY / "prometheus/rules_test.yml").read_text()))
    explained = set(re.findall(r"^\| `(TriggerGuard\w+)` \|", (ROOT / "docs/alerting.md").read_text(), re.MULTILINE))
    assert set(alerts) == tested == explained


def test_rules_and_dashboard_name_metrics_that_exist():
    told = set(re.findall(r"^\| `(guard_\w+)` \|", (ROOT / "docs/metrics.md").read_text(), re.MULTILINE))
    texts = (DEPLOY / "prometheus/rules.yml").read_text(), *EXPRESSIONS
    named = {re.sub("_(bucket|sum|count)$", "", name) for text in texts for name in re.findall(r"\bguard_\w+", text)}
    assert named
    assert named <= told


def test_panels_have_ids_of_their_own_and_do_not_overlap():
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    cells = [
        (x, y)
        for place in (panel["gridPos"] for panel in panels)
        for x in range(place["x"], place["x"] + place["w"])
        for y in range(place["y"], place["y"] + place["h"])
    ]
    assert len(set(cells)) == len(cells)
    assert max(x for x, _ in cells) < 24
