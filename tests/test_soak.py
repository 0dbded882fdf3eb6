"""Minutes of mixed traffic: every answer the guard's, nobody forgotten, and memory, threads and files stay flat."""

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import grpc
import numpy as np
import pytest
from soak import Soak, usage

from guard import Guard

ROOT = Path(__file__).parents[1]
SLACK_KIB = 16 * 1024


def serve(bundle, log):
    command = [sys.executable, "-W", "error", "-m", "serving", str(bundle), "--port", "0", "--metrics-port", "0"]
    return subprocess.Popen([*command, "--threads", "1"], cwd=ROOT, stdout=subprocess.PIPE, stderr=log, text=True)


def soak(digits, bundle, seconds, log):
    """Return the counts of a soak, and what the server took at each look."""
    clean, triggered = (np.load(path)["inputs"][:200] for path in (digits.test, digits.triggered))
    taken = []
    with serve(bundle, log) as server:
        try:
            address = re.search(r"serving (\S+) on (\S+),", server.stdout.readline())
            with grpc.insecure_channel(address[2]) as channel:
                traffic = Soak(channel, address[1], Guard.load(bundle, threads=1), clean, triggered)
                traffic.run(seconds, lambda: taken.append(usage(server.pid)), every_s=seconds / 30)
            assert traffic.problems == []
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
    return traffic.counts, taken


def check(counts, taken):
    assert counts.keys() == {"clean", "triggered", "malformed", "hung up", "late"}
    third = len(taken) // 3
    before, after = (
        {k: np.median([look[k] for look in part]) for k in taken[0]} for part in (taken[third:-third], taken[-third:])
    )
    assert after["rss_kib"] <= before["rss_kib"] * 1.02 + SLACK_KIB
    assert after["threads"] <= before["threads"] + 2
    assert after["files"] <= before["files"] + 4


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
def test_a_server_under_mixed_traffic_answers_as_the_guard_and_stays_as_large_as_it_is(digits, digits_bundle, tmp_path):
    with (tmp_path / "log").open("w") as log:
        check(*soak(digits, digits_bundle, 12, log))
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said, said[-4000:]


@pytest.mark.slow
@pytest.mark.timeout(0)
def test_the_same_for_minutes(digits, digits_bundle, tmp_path):
    with (tmp_path / "log").open("w") as log:
        check(*soak(digits, digits_bundle, 60 * float(os.environ.get("SOAK_MINUTES", "5")), log))
    said = (tmp_path / "log").read_text()
    assert "Traceback" not in said, said[-4000:]
