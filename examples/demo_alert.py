"""An alert from beginning to end: serve the digits of ``make demo``, watch them with Prometheus, attack, see it fire.

Run it with ``make demo-alert``. Everything it makes lands in ``out/demo-alert``.
"""

import shutil
import time
from pathlib import Path

import numpy as np

from examples.dashboard_picture import draw
from examples.demo import OUT as DEMO
from examples.demo import TARGET_CLASS, Images, ask, prepare, say, serving, test_part, with_trigger
from examples.local_prometheus import Alert, LocalPrometheus, prometheus

OUT = Path("out/demo-alert")
CLEAN_S, ATTACK_S, REST_S = 20.0, 20.0, 10.0
ATTACKED_SHARE, N_ROWS, PAUSE_S = 0.1, 16, 0.05
FIRES = {"TriggerGuardAttack", "TriggerGuardOneClass"}
"""What an attack towards one class fires."""


def main() -> None:
    """Run the demonstration."""
    if shutil.which("prometheus") is None:
        raise SystemExit("demo-alert: prometheus is missing; run deploy/prometheus/install.sh as root")
    shutil.rmtree(OUT, ignore_errors=True)
    OUT.mkdir(parents=True)
    if not (DEMO / "bundle").exists():
        prepare()
    images, labels = test_part()
    victims = with_trigger(images[labels != TARGET_CLASS])
    with serving(DEMO / "bundle") as (address, metrics_url):
        target = metrics_url.removeprefix("http://").removesuffix("/metrics")
        with prometheus(target, OUT) as watching:
            started, attacked = demonstrate(watching, address, images, victims)
            draw(watching, OUT / "dashboard.png", start=started, end=time.time(), marked=attacked)
    print(f"\nOpen {OUT}/dashboard.png: the panels of deploy/grafana/dashboard.json, from this Prometheus.")


def demonstrate(
    watching: LocalPrometheus, address: str, images: Images, victims: Images
) -> tuple[float, tuple[float, float]]:
    """Send clean traffic, attack until both alerts fire, and be quiet again; return when it all began, and the attack.

    Raises:
        SystemExit: An alert fired on clean traffic, or none did under attack.
    """
    print(f"Prometheus reads its metrics every second, and alerts by deploy/prometheus/rules.yml: {watching.url}")
    started = time.time()
    say(f"1. Clean traffic for {CLEAN_S:.0f} s")
    send(watching, address, images, victims, share=0.0, seconds=CLEAN_S)
    if fired := firing(watching):
        raise SystemExit(f"demo-alert: {fired[0].name} fired on clean traffic")
    print("  no alert")
    say(f"2. One row in {1 / ATTACKED_SHARE:.0f} carries the trigger")
    began = time.time()
    send(watching, address, images, victims, share=ATTACKED_SHARE, seconds=ATTACK_S)
    found = firing(watching)
    print(f"  {watching.value('sum(guard_flagged_rows_total)'):.0f} of {watching.value('sum(guard_rows_total)'):.0f}"
          " rows so far are flagged")  # fmt: skip
    for alert in found:
        print(f"  FIRING {alert.name} ({alert.labels['severity']}): {alert.summary}")
    if not {alert.name for alert in found} >= FIRES:
        raise SystemExit("demo-alert: no alert fired")
    say(f"3. Clean traffic again for {REST_S:.0f} s")
    ended = time.time()
    send(watching, address, images, victims, share=0.0, seconds=REST_S)
    return started, (began, ended)


def send(
    watching: LocalPrometheus, address: str, images: Images, victims: Images, *, share: float, seconds: float
) -> None:
    """Send rows drawn at random, a share of them triggered, and say when an alert begins to fire."""
    rng, began = np.random.default_rng(0), time.monotonic()
    known = {alert.name for alert in firing(watching)}
    while (passed := time.monotonic() - began) < seconds:
        rows = images[rng.integers(0, len(images), N_ROWS)]
        attacked = rng.random(N_ROWS) < share
        rows[attacked] = victims[rng.integers(0, len(victims), attacked.sum())]
        ask(address, rows)
        for alert in firing(watching):
            if alert.name not in known:
                known.add(alert.name)
                print(f"  after {passed:.0f} s {alert.name} fires", flush=True)
        time.sleep(PAUSE_S)


def firing(watching: LocalPrometheus) -> list[Alert]:
    """Return the alerts that fire now."""
    return [alert for alert in watching.alerts() if alert.state == "firing"]


if __name__ == "__main__":
    main()
