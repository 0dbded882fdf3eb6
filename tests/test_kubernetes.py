"""The manifests are valid, run what exists, and keep to the restricted Pod Security Standard."""

import copy
import re
import shlex
import subprocess
import tomllib
from pathlib import Path

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry

from serving.command_line import parse
from serving.config import ServerConfig
from serving.metrics import Metrics

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "deploy" / "kubernetes"
VERSIONS = ("1.31", "1.37")

OF_KSERVE = {"minReplicas", "maxReplicas", "scaleMetric", "scaleTarget"}
"""What KServe's documentation has in a component beside a pod's specification."""

APPENDED = ["--model_name", "classifier", "--predictor_host", "classifier-predictor.default", "--http_port", "8080"]
"""What KServe appends to a transformer's arguments."""


def documents(name):
    return list(yaml.safe_load_all((FOLDER / name).read_text()))


GUARD = {document["kind"]: document for document in documents("guard.yaml")}
INFERENCE_SERVICE = documents("inference-service.yaml")[0]
COMPONENTS = INFERENCE_SERVICE["spec"]


def pod(component):
    spec = {key: value for key, value in COMPONENTS[component].items() if key not in OF_KSERVE}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": component}, "spec": spec}


PODS = {
    "deployment": GUARD["Deployment"]["spec"]["template"],
    "predictor": pod("predictor"),
    "transformer": pod("transformer"),
}


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("document", [*GUARD.values(), pod("predictor"), pod("transformer")], ids=lambda d: d["kind"])
def test_the_manifests_are_valid(document, version):
    kubernetes_validate.validate(document, version, strict=True)


@pytest.mark.parametrize("path", [("spec", "relicas"), ("spec", "template", "spec", "containers", 0, "livenessprobe")])
def test_a_misspelt_manifest_is_not(path):
    document = copy.deepcopy(GUARD["Deployment"])
    place = document
    for key in path[:-1]:
        place = place[key]
    place[path[-1]] = 1
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(document, VERSIONS[-1], strict=True)


def test_what_is_kserves_own_is_what_its_documentation_has():
    assert (INFERENCE_SERVICE["apiVersion"], INFERENCE_SERVICE["kind"]) == (
        "serving.kserve.io/v1beta1",
        "InferenceService",
    )
    assert set(COMPONENTS) == {"predictor", "transformer"}
    assert all(COMPONENTS[name]["containers"][0]["name"] == "kserve-container" for name in COMPONENTS)


def test_the_deployment_gives_guard_serve_flags_that_it_takes():
    container = GUARD["Deployment"]["spec"]["template"]["spec"]["containers"][0]
    options = parse(container["args"])
    assert str(options.bundle).startswith(container["volumeMounts"][0]["mountPath"])
    assert str(options.threads) == container["resources"]["requests"]["cpu"]


def test_the_transformer_starts_guard_serve_whatever_kserve_appends(tmp_path):
    container = COMPONENTS["transformer"]["containers"][0]
    (tmp_path / "guard-serve").write_text('#!/bin/sh\nprintf "%s\\n" "$@"\n')
    (tmp_path / "guard-serve").chmod(0o755)
    command = [*container["command"], *container["args"], *APPENDED]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    options = parse(done.stdout.splitlines())
    host, _, port = options.upstream.partition(":")
    assert host == f"{INFERENCE_SERVICE['metadata']['name']}-predictor"
    # Of a predictor's ports the first gets another number in its Service.
    assert int(port) in [each["containerPort"] for each in COMPONENTS["predictor"]["containers"][0]["ports"][1:]]


def test_ports_and_probes_are_the_servers():
    for name in ("deployment", "transformer"):
        container = PODS[name]["spec"]["containers"][0]
        ports = {port["name"]: port["containerPort"] for port in container["ports"]}
        assert ports == {"grpc": ServerConfig().port, "metrics": ServerConfig().metrics_port}
        assert container["readinessProbe"]["grpc"]["port"] == ServerConfig().port


def test_a_pod_has_time_to_drain():
    for name in ("deployment", "transformer"):
        spec = PODS[name]["spec"]
        container = spec["containers"][0]
        grace_s = float(re.search(r"--grace-s\D+(\d+)", shlex.join(container["args"]))[1])
        assert spec["terminationGracePeriodSeconds"] > container["lifecycle"]["preStop"]["sleep"]["seconds"] + grace_s


def test_the_guards_pods_are_restricted():
    for name in ("deployment", "transformer"):
        spec = PODS[name]["spec"]
        assert spec["securityContext"]["runAsNonRoot"]
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not spec["automountServiceAccountToken"]
        assert spec["containers"][0]["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        }


def test_the_autoscaler_asks_for_a_metric_that_is_exported_and_adapted():
    registry = CollectorRegistry()
    Metrics(registry)
    names = {family.name for family in registry.collect()}
    asked = [m["pods"]["metric"]["name"] for m in GUARD["HorizontalPodAutoscaler"]["spec"]["metrics"] if "pods" in m]
    adapted = documents("prometheus-adapter.yaml")[0]["rules"]["custom"]
    assert set(asked) <= names
    assert [rule["seriesQuery"].partition("{")[0] for rule in adapted] == asked


def test_the_monitor_finds_the_service_and_gives_the_job_that_rules_look_for():
    monitor = documents("service-monitor.yaml")[0]
    labels = GUARD["Service"]["metadata"]["labels"]
    assert monitor["spec"]["selector"]["matchLabels"].items() <= labels.items()
    assert {e["port"] for e in monitor["spec"]["endpoints"]} <= {
        port["name"] for port in GUARD["Service"]["spec"]["ports"]
    }
    job = labels[monitor["spec"]["jobLabel"]]
    assert f'job="{job}"' in (ROOT / "deploy/prometheus/rules.yml").read_text()


def test_the_image_tells_nobody_of_its_use():
    assert "ORT_DISABLE_TELEMETRY=1" in (FOLDER / "Dockerfile").read_text()


def test_the_image_installs_extras_that_exist_and_neither_torch_nor_onnx():
    text = (FOLDER / "Dockerfile").read_text()
    extras = re.search(r"/source\[([a-z,]+)\]", text)[1].split(",")
    offered = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    needed = [re.split(r"[^\w-]", requirement)[0] for extra in extras for requirement in offered[extra]]
    assert {"torch", "onnx", "pillow", "matplotlib"}.isdisjoint(needed)
