"""The Dockerfiles and compose.yaml: judged by their own tools, and by what the settings and commands know."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import sys
import threading
from http.client import HTTPConnection
from http.server import ThreadingHTTPServer
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from storage.signing import callback_headers
from tests.deploy.names import (
    DEPLOY,
    ROOT,
    documents,
    is_known_command,
    refused_settings,
    require_tool,
    shell_variables,
    unknown_variables,
)
from tests.waiting import PATIENCE_SECONDS

CONTAINERS = DEPLOY / "containers"
COMPOSE = CONTAINERS / "compose.yaml"
DOCKERFILES = ["worker.Dockerfile", "producer.Dockerfile"]


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    (compose,) = documents(COMPOSE)
    found: dict[str, Any] = compose["services"]
    return found


def tool(name: str) -> str:
    beside = Path(sys.executable).with_name(name)
    path = str(beside) if beside.exists() else shutil.which(name)
    require_tool(path, f"{name} is not installed")
    assert path is not None
    return path


@pytest.mark.parametrize("name", DOCKERFILES)
def test_hadolint_has_nothing_to_say_about_a_dockerfile(name: str) -> None:
    ended = subprocess.run([tool("hadolint"), CONTAINERS / name], capture_output=True, text=True)

    assert (ended.returncode, ended.stdout) == (0, "")


def test_compose_has_the_form_that_compose_reads(tmp_path: Path) -> None:
    check = [tool("check-jsonschema"), "--builtin-schema", "vendor.compose-spec"]
    misspelt = tmp_path / "compose.yaml"
    misspelt.write_text(COMPOSE.read_text().replace("stop_grace_period", "stop_grace_time"))

    assert subprocess.run([*check, COMPOSE], capture_output=True).returncode == 0
    assert subprocess.run([*check, misspelt], capture_output=True).returncode == 1


def test_compose_and_dockerfiles_name_only_variables_that_something_reads(services: dict[str, Any]) -> None:
    named = {name for service in services.values() for name in service.get("environment", {})}
    for name in DOCKERFILES:
        named |= shell_variables((CONTAINERS / name).read_text())
        named |= set(re.findall(r"^(?:ENV|   ) ([A-Z_]+)=", (CONTAINERS / name).read_text(), re.MULTILINE))

    assert unknown_variables(named) == []


def test_every_value_of_compose_is_one_that_the_settings_take(services: dict[str, Any]) -> None:
    refused = {name: refused_settings(service.get("environment", {})) for name, service in services.items()}

    assert {name: words for name, words in refused.items() if words} == {}


def test_every_service_of_ours_runs_a_command_that_there_is(services: dict[str, Any]) -> None:
    ours = {name: service for name, service in services.items() if service["image"].startswith("kontext-")}
    commands = {name: service.get("command", "worker run") for name, service in ours.items()}

    assert [
        name
        for name, command in commands.items()
        if not command[0].startswith("python")
        and not (isinstance(command, str) and (command.startswith("python") or is_known_command(command.split())))
        and name != "producer"
    ] == []


def test_every_file_that_compose_mounts_is_there(services: dict[str, Any]) -> None:
    sources = [
        volume.split(":")[0]
        for service in services.values()
        for volume in service.get("volumes", [])
        if volume.startswith(".")
    ]

    assert sources
    assert [source for source in sources if not (CONTAINERS / source).exists()] == []


def test_loras_lie_where_a_read_only_worker_may_write(services: dict[str, Any]) -> None:
    (folder,) = re.findall(r"DG_LORA_CACHE_DIR=(\S+)", (CONTAINERS / "worker.Dockerfile").read_text())

    for name in ("worker", "worker-gpu"):
        assert services[name]["read_only"] is True
        mounted = [volume.split(":") for volume in services[name]["volumes"]]
        assert [target for _, target, *mode in mounted if folder.startswith(f"{target}/") and not mode]


def test_a_worker_gets_the_time_to_drain(services: dict[str, Any]) -> None:
    # DG_DRAIN_SECONDS (60), 10 s to hand back, 20 s for a callback under way
    assert {services[name]["stop_grace_period"] for name in ("worker", "worker-gpu")} == {"90s"}


@pytest.mark.parametrize("name", DOCKERFILES)
def test_an_image_gets_what_its_dockerfile_copies_and_neither_weights_nor_tests(name: str) -> None:
    kept = {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")}
    copied = re.findall(r"^COPY (?!--from)(.+) \S+$", (CONTAINERS / name).read_text(), re.MULTILINE)
    sources = {source for line in copied for source in line.split()} - {"."}

    assert sources
    assert sources <= kept
    assert {"jobs", "kontext", "producer", "storage", "worker", "models/tiny", "README.md", "LICENSE"} <= kept
    assert not kept & {"tests", "models", "benchmarks", ".git"}
    assert [path for path in kept if not (ROOT / path).exists()] == []


@pytest.mark.parametrize(("extra", "has_torch"), [("worker", True), ("service", False)])
def test_the_requirements_of_an_image_are_those_of_its_extra(extra: str, has_torch: bool) -> None:
    printed = subprocess.run(
        [sys.executable, ROOT / "tools" / "requirements", extra], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.splitlines()

    assert any(line.startswith("torch>=") for line in printed) is has_torch
    assert {line.split(">=")[0].split("[")[0] for line in printed} >= {"celery", "prometheus-client", "httpx2"}
    assert not any(line.startswith("kontext-edits") for line in printed)


SECRET = f"whsec_{base64.b64encode(b'another secret, 24 bytes').decode()}"
BODY = b'{"type": "edit.succeeded", "data": {"output": "s3://pictures/edits/a.png"}}'


@pytest.mark.parametrize(
    ("secret", "seconds_off", "body", "status"),
    [(SECRET, 0, BODY, 204), (f"{SECRET[:-4]}AAAA", 0, BODY, 401), (SECRET, -900, BODY, 401)],
    ids=["genuine", "of somebody else", "old"],
)
def test_the_example_receiver_takes_genuine_callbacks_only(
    secret: str, seconds_off: int, body: bytes, status: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    import time

    monkeypatch.setenv("DG_CALLBACK_SECRET", SECRET)
    server = ThreadingHTTPServer(("127.0.0.1", 0), receiver().Receiver)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        connection = HTTPConnection("127.0.0.1", server.server_address[1], timeout=PATIENCE_SECONDS)
        headers = callback_headers([secret], "msg_a_succeeded", int(time.time()) + seconds_off, body)
        connection.request("POST", "/", body, headers)
        answer = connection.getresponse()
        answer.read()
        connection.close()
    finally:
        server.shutdown()
        thread.join()
        server.server_close()

    assert answer.status == status


def receiver() -> ModuleType:
    spec = spec_from_file_location("receiver", CONTAINERS / "receiver.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
