"""Serve a configuration of Ray Serve on this machine alone, until told to stop.

    python deploy/ray/run.py deploy/ray/serve_config.yaml --num-cpus 4

Ray's processes and its gRPC proxy, which clients speak to, listen on every address: keep the machine's network closed.
On a cluster that runs already, `serve deploy` takes the same file.
"""

import argparse
import os
import signal
from pathlib import Path

_STORE_BYTES = 256 * 2**20


def main() -> None:
    """Start Ray, then what `serve run` would start."""
    parser = argparse.ArgumentParser(description="Serve a configuration of Ray Serve on this machine alone.")
    parser.add_argument("config", metavar="FILE", type=Path, help="such as deploy/ray/serve_config.yaml")
    parser.add_argument("--num-cpus", metavar="N", type=int, default=os.cpu_count(), help="that replicas may take")
    options = parser.parse_args()
    # Read by Ray when it is imported, and by onnxruntime in the replicas: nobody else is told of what runs here.
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "ORT_DISABLE_TELEMETRY": "1"}
    import ray  # noqa: PLC0415
    from ray.serve.scripts import cli  # noqa: PLC0415

    store = _STORE_BYTES  # only what is over 100 KB lies there, and only until it is answered
    ray.init("local", num_cpus=options.num_cpus, object_store_memory=store, include_dashboard=False, namespace="serve")
    # `serve run` ends in good order when interrupted; service managers terminate, for which Ray has set a handler.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    cli(["run", str(options.config)])


if __name__ == "__main__":
    main()
