"""The manifests, checked without a cluster: by schemas, by kustomize, and by what the settings and daemons know."""

from __future__ import annotations

import copy
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from prometheus_client import CollectorRegistry
from pydantic import ValidationError
from starlette.routing import Route

from producer.http.app import make_app
from producer.http.server import LAST_ANSWERS_SECONDS
from producer.http.settings import HttpSettings
from tests.deploy.names import DEPLOY, documents, is_known_command, refused_settings, unknown_variables
from tests.waiting import PATIENCE_SECONDS
from worker.metrics.server import MetricsServer

KUBERNETES = DEPLOY / "kubernetes"
VERSION = "1.37"
DRAIN_TAIL_SECONDS = 30
"""After DG_DRAIN_SECONDS: 10 s to hand jobs back, 20 s for a callback under way."""

FILES = sorted(path for path in KUBERNETES.rglob("*.yaml") if path.name != "kustomization.yaml")
OBJECTS = [
    pytest.param(document, id=f"{path.relative_to(KUBERNETES)}:{document['kind']}:{document['metadata']['name']}")
    for path in FILES
    for document in documents(path)
]
KUSTOMIZATIONS = {
    "example": "../example",
    "weights-image and dra": "../base ../components/weights-image ../components/dra",
}


def validate(document: Any) -> None:
    """Raise for a field or value that Kubernetes or KEDA would not take."""
    if document["apiVersion"].startswith("keda.sh/"):
        # Seconds of work to import, which only the process that runs these tests should do.
        from cloudcoil.models.keda.v1alpha1 import ScaledObject

        ScaledObject.model_validate(document, extra="forbid")
    elif not document["apiVersion"].startswith("monitoring.coreos.com/"):
        kubernetes_validate.validate(document, VERSION, strict=True)


@pytest.mark.parametrize("document", OBJECTS)
def test_an_object_is_one_that_kubernetes_takes(document: Any) -> None:
    validate(document)


@pytest.mark.parametrize(
    ("kind", "path", "field"),
    [
        ("Deployment", ("spec", "template", "spec", "containers", 0), "readynessProbe"),
        ("ScaledObject", ("spec",), "coolDownPeriod"),
        ("ResourceClaimTemplate", ("spec", "spec", "devices", "requests", 0, "exactly"), "deviceClass"),
    ],
)
def test_a_misspelt_field_would_be_found(kind: str, path: tuple[Any, ...], field: str) -> None:
    document = copy.deepcopy(next(item.values[0] for item in OBJECTS if item.values[0]["kind"] == kind))
    place = document
    for step in path:
        place = place[step]
    place[field] = 1

    with pytest.raises((kubernetes_validate.ValidationError, ValidationError)):
        validate(document)


@pytest.mark.parametrize("name", KUSTOMIZATIONS)
def test_kustomize_makes_objects_that_kubernetes_takes(name: str, tmp_path: Path) -> None:
    if shutil.which("kubectl") is None:
        pytest.skip("kubectl is not installed (no package of Debian or PyPI has it)")
    made = kustomize(KUSTOMIZATIONS[name], tmp_path)

    for document in made:
        validate(document)
    (worker,) = [item for item in made if item["kind"] == "Deployment" and item["metadata"]["name"] == "kontext-worker"]
    container = worker["spec"]["template"]["spec"]["containers"][0]
    assert {"name": "DG_FLUX_KONTEXT_MODEL", "value": "/models/kontext"} in container["env"]
    mounted = {mount["name"] for mount in container["volumeMounts"]}
    assert mounted == {volume["name"] for volume in worker["spec"]["template"]["spec"]["volumes"]}
    if name == "example":
        assert "replicas" not in worker["spec"]
        assert container["image"] == "registry.example.org/kontext-worker:0.1.0"
    else:
        assert "nvidia.com/gpu" not in container["resources"]["limits"]
        assert container["resources"]["claims"] == [{"name": "gpu"}]
        assert [claim["name"] for claim in worker["spec"]["template"]["spec"]["resourceClaims"]] == ["gpu"]


def test_every_variable_is_known_and_every_value_is_one_that_the_settings_take() -> None:
    given = dict(environment_entries())

    assert {"DG_BROKER_URL", "DG_METRICS_PORT", "DG_FLUX_KONTEXT_MODEL"} <= given.keys()
    assert unknown_variables(given) == []
    assert refused_settings({name: value for name, value in given.items() if value is not None}) == ""


def test_every_container_of_ours_runs_a_command_that_there_is() -> None:
    ours = [container for container in containers() if container["image"].startswith("kontext-")]

    assert len(ours) == 5
    assert [container["args"] for container in ours if not is_known_command(container["args"])] == []


def test_every_probe_asks_what_the_daemons_answer() -> None:
    probes = [
        (container, container[kind])
        for container in containers()
        for kind in ("startupProbe", "livenessProbe", "readinessProbe")
        if kind in container and "httpGet" in container[kind] and container["name"] != "door"
    ]
    server = MetricsServer("127.0.0.1", 0, CollectorRegistry())
    port = dict(environment_entries())["DG_METRICS_PORT"]

    assert len(probes) == 7
    for container, probe in probes:
        assert [int(item["containerPort"]) for item in container["ports"]] == [int(port or 0)]
        assert probe["httpGet"]["port"] == container["ports"][0]["name"] == "metrics"
        connection = HTTPConnection("127.0.0.1", server.port, timeout=PATIENCE_SECONDS)
        connection.request("GET", probe["httpGet"]["path"])
        assert connection.getresponse().read() == b"ok\n"
        connection.close()
    server.close()


def test_the_door_is_probed_served_and_let_in_at_its_own_port() -> None:
    (door,) = [container for container in containers() if container["name"] == "door"]
    parts = {item["kind"]: item for item in documents(KUBERNETES / "components" / "door" / "door.yaml")}
    pod = parts["Deployment"]["spec"]["template"]
    port = {
        "name": "http",
        "containerPort": int({entry["name"]: entry["value"] for entry in door["env"]}["DG_HTTP_PORT"]),
    }
    routes = {route.path for route in make_app(HttpSettings(_env_file=None)).routes if isinstance(route, Route)}

    assert door["ports"] == [port]
    assert {door[kind]["httpGet"]["port"] for kind in ("livenessProbe", "readinessProbe")} == {"http"}
    assert {door[kind]["httpGet"]["path"] for kind in ("livenessProbe", "readinessProbe")} <= routes
    assert parts["Service"]["spec"]["ports"] == [{"name": "http", "port": 80, "targetPort": "http"}]
    assert parts["Service"]["spec"]["selector"].items() <= pod["metadata"]["labels"].items()
    assert parts["NetworkPolicy"]["spec"]["ingress"][0]["ports"][0]["port"] == port["containerPort"]
    assert pod["spec"]["terminationGracePeriodSeconds"] > LAST_ANSWERS_SECONDS


def test_a_pod_gets_the_time_to_drain() -> None:
    worker = next(item for item in documents(KUBERNETES / "base" / "worker.yaml") if item["kind"] == "Deployment")
    drain_seconds = int(dict(environment_entries())["DG_DRAIN_SECONDS"] or 0)

    assert worker["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] == drain_seconds + DRAIN_TAIL_SECONDS


def test_no_container_runs_as_root_or_writes_to_its_image() -> None:
    for pod in pods():
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["automountServiceAccountToken"] is False
        for container in pod["containers"]:
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert "memory" in container["resources"]["limits"]


def test_loras_lie_on_a_volume_that_a_worker_may_write() -> None:
    (worker,) = [container for container in containers() if container["name"] == "worker"]
    (folder,) = [entry["value"] for entry in worker["env"] if entry["name"] == "DG_LORA_CACHE_DIR"]

    assert [
        mount["name"]
        for mount in worker["volumeMounts"]
        if folder.startswith(f"{mount['mountPath']}/") and not mount.get("readOnly")
    ] == ["cache"]


def test_the_settings_and_the_manual_name_the_secrets_that_pods_read() -> None:
    sources = [source for container in containers() for source in container.get("envFrom", [])]
    read = {source["secretRef"]["name"] for source in sources if "secretRef" in source}
    made = {item["metadata"]["name"] for item in documents(KUBERNETES / "base" / "secret.example.yaml")}

    assert read == made == {f"kontext-{name}" for name in ("worker", "callbacks", "exporter", "door")}
    for page in (KUBERNETES / "base" / "config.yaml", DEPLOY.parent / "docs" / "kubernetes.md"):
        assert [name for name in made if f"`{name}`" not in page.read_text()] == []


def test_the_address_given_for_the_bundled_valkey_is_its_services() -> None:
    service = next(item for item in documents(KUBERNETES / "valkey" / "valkey.yaml") if item["kind"] == "Service")
    address = f"@{service['metadata']['name']}:{service['spec']['ports'][0]['port']}/0"

    for page in (KUBERNETES / "base" / "secret.example.yaml", DEPLOY.parent / "docs" / "kubernetes.md"):
        assert re.search(rf"redis://worker:\S+{address}", page.read_text())


def test_scaling_asks_for_a_metric_that_the_exporter_has() -> None:
    page = (DEPLOY.parent / "docs" / "metrics.md").read_text()
    (scaled,) = documents(KUBERNETES / "components" / "autoscale" / "scaled-object.yaml")

    assert "kontext_jobs{" in scaled["spec"]["triggers"][0]["metadata"]["query"]
    assert "`kontext_jobs`" in page


def test_the_operators_rules_are_those_of_prometheus() -> None:
    (rule,) = documents(KUBERNETES / "components" / "monitoring" / "rules.yaml")
    (rules,) = documents(DEPLOY / "prometheus" / "rules.yaml")

    assert rule["spec"] == rules, "run: tools/prometheus-rule > deploy/kubernetes/components/monitoring/rules.yaml"


def test_monitors_find_every_daemon() -> None:
    (monitor,) = documents(KUBERNETES / "components" / "monitoring" / "monitors.yaml")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    deployments = [item.values[0] for item in OBJECTS if item.values[0]["kind"] == "Deployment"]
    daemons = [daemon for daemon in deployments if daemon["metadata"]["name"] != "kontext-door"]  # it has no metrics

    assert len(daemons) == 3
    assert all(wanted <= daemon["spec"]["template"]["metadata"]["labels"].items() for daemon in daemons)
    assert {daemon["metadata"]["labels"]["app.kubernetes.io/name"] for daemon in daemons} == {
        f"kontext-{name}" for name in ("worker", "callbacks", "exporter")
    }


def kustomize(parts: str, folder: Path) -> list[Any]:
    """What `kubectl kustomize` makes of a base and components, named relative to `deploy/kubernetes/base`."""
    paths = [os.path.relpath(KUBERNETES / "base" / part, folder.resolve()) for part in parts.split()]
    kustomization = {"resources": paths[:1], "components": paths[1:]}
    (folder / "kustomization.yaml").write_text(yaml.safe_dump(kustomization))
    ended = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return list(yaml.safe_load_all(ended.stdout))


def pods() -> Iterator[Any]:
    for item in OBJECTS:
        document = item.values[0]
        if document["kind"] in ("Deployment", "StatefulSet", "Job"):
            yield document["spec"]["template"]["spec"]


def containers() -> Iterator[Any]:
    for pod in pods():
        yield from pod["containers"]


def environment_entries() -> Iterator[tuple[str, str | None]]:
    """Every variable that the manifests set, with its value where it stands there."""
    for item in OBJECTS:
        document = item.values[0]
        if document["kind"] in ("ConfigMap", "Secret"):
            yield from (document.get("data") or document["stringData"]).items()
    for container in containers():
        yield from ((entry["name"], entry.get("value")) for entry in container.get("env", []))
    for path in KUBERNETES.rglob("kustomization.yaml"):
        for patch in documents(path)[0].get("patches", []):
            for change in yaml.safe_load(patch["patch"]):
                if change["path"].endswith("/env/-"):
                    yield change["value"]["name"], change["value"].get("value")
