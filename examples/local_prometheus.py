"""A Prometheus of one's own on a free port of 127.0.0.1, for the demonstration and the tests of the alerts."""

import json
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

__all__ = ["RULES", "Alert", "LocalPrometheus", "prometheus"]

RULES = Path(__file__).parents[1] / "deploy/prometheus/rules.yml"

_CONFIG = """\
global: {{scrape_interval: {interval}, scrape_timeout: {interval}, evaluation_interval: {interval}}}
rule_files: [{rules}]
scrape_configs:
  - job_name: trigger-guard
    static_configs: [{{targets: ["{target}"]}}]
"""
_START_S = 60
_STEP_S = 0.2


@dataclass(frozen=True, slots=True, kw_only=True)
class Alert:
    """An alert that is pending or firing, with its labels but the name."""

    name: str
    state: str
    labels: Mapping[str, str]
    summary: str


@dataclass(frozen=True, slots=True)
class LocalPrometheus:
    """A running Prometheus, by its URL."""

    url: str

    def query(self, expression: str) -> list[dict[str, Any]]:
        """Return the series that an expression gives now."""
        return list(self._get("query", query=expression)["result"])

    def value(self, expression: str) -> float:
        """Return the value of the one series that an expression gives, 0 where it gives none yet."""
        found = self.query(expression)
        return float(found[0]["value"][1]) if found else 0.0

    def history(self, expression: str, *, start: float, end: float, step_s: float) -> list[dict[str, Any]]:
        """Return the series that an expression gave between two times, in seconds since the epoch."""
        return list(self._get("query_range", query=expression, start=start, end=end, step=step_s)["result"])

    def alerts(self) -> list[Alert]:
        """Return the alerts that are pending or firing."""
        return [
            Alert(
                name=found["labels"].pop("alertname"),
                state=found["state"],
                labels=found["labels"],
                summary=found["annotations"]["summary"],
            )
            for found in self._get("alerts")["alerts"]
        ]

    def evaluations(self) -> float:
        """Return how many times the rules have been evaluated, as Prometheus says it itself."""
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        counts = (line for line in lines if line.startswith("prometheus_rule_group_iterations_total{"))
        return sum(float(line.rsplit(" ", 1)[1]) for line in counts)

    def wait(self, happened: Callable[[], bool], *, timeout_s: float) -> bool:
        """Ask until it happened, which it returns, or the time is up."""
        end = time.monotonic() + timeout_s
        while not (done := happened()) and time.monotonic() < end:
            time.sleep(_STEP_S)
        return done

    def _get(self, path: str, **parameters: object) -> dict[str, Any]:
        address = f"{self.url}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(address, timeout=10) as answer:
            return dict(json.load(answer)["data"])


@contextmanager
def prometheus(target: str, folder: Path, *, rules: Path = RULES, interval: str = "1s") -> Iterator[LocalPrometheus]:
    """Run Prometheus until the block ends; what it writes goes into the folder.

    Args:
        target: What it reads metrics from, HOST:PORT.
        folder: An empty one.
        rules: What it alerts by.
        interval: How often it reads, and evaluates the rules.

    Raises:
        RuntimeError: It is not installed, or does not start.
    """
    program = shutil.which("prometheus")
    if program is None:
        raise RuntimeError("prometheus is missing; run deploy/prometheus/install.sh")
    config, log = folder / "prometheus.yml", folder / "prometheus.log"
    config.write_text(_CONFIG.format(interval=interval, rules=json.dumps(str(rules.resolve())), target=target))
    address = f"127.0.0.1:{_free_port()}"
    command = [program, f"--config.file={config}", f"--storage.tsdb.path={folder / 'data'}",
               f"--web.listen-address={address}"]  # fmt: skip
    with log.open("wb") as output, subprocess.Popen(command, stdout=output, stderr=output) as process:
        try:
            _wait_until_ready(process, address, log)
            yield LocalPrometheus(f"http://{address}")
        finally:
            process.terminate()


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_until_ready(process: subprocess.Popen[bytes], address: str, log: Path) -> None:
    end = time.monotonic() + _START_S
    while process.poll() is None and time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"http://{address}/-/ready", timeout=5):
                return
        except (urllib.error.URLError, OSError):
            time.sleep(_STEP_S)
    raise RuntimeError(f"prometheus did not start; {log} says: {log.read_text()[-500:]}")
