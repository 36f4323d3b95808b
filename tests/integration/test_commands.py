"""The worker's commands as operators and probes run them."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys

import pytest

from jobs.schema import JobState
from tests.integration.conftest import SECRET, Service, StartWorker
from tests.servers.http import Answer, HttpServer
from tests.servers.worker import ROOT, running_worker
from tests.waiting import eventually


def worker(environment: dict[str, str], *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "worker", *words]
    return subprocess.run(command, env={**os.environ, **environment}, cwd=ROOT, capture_output=True, text=True)


@pytest.fixture
def environment(service: Service) -> dict[str, str]:
    return {**service.environment, "DG_RUNTIME_DIR": str(service.folder / "runtime")}


def test_check_names_what_is_there_and_what_is_missing(service: Service, environment: dict[str, str]) -> None:
    (service.folder / "in").mkdir()

    well = worker({**environment, "DG_FLUX_KONTEXT_ENGINE": "native"}, "check", "--json")

    findings = {found["subject"]: found for found in map(json.loads, well.stdout.splitlines())}
    assert well.returncode == 0, well.stdout
    assert findings["model"]["found"].endswith("flux1-tiny-kontext.safetensors")
    assert findings["redis"]["level"] == findings["output"]["level"] == findings["callbacks"]["level"] == "ok"

    broken = {
        "DG_FLUX_KONTEXT_OFFLOD": "true",
        "DG_FLUX_KONTEXT_MODEL": "/no/such/model",
        "DG_BROKER_URL": "redis://127.0.0.1:1/0",
    }
    ill = worker({**environment, **broken, "DG_FLUX_KONTEXT_ENGINE": "native"}, "check", "--json")

    assert "DG_FLUX_KONTEXT_OFFLOD is no setting: did you mean DG_FLUX_KONTEXT_OFFLOAD?" in ill.stdout
    failed = {found["subject"] for found in map(json.loads, ill.stdout.splitlines()) if found["level"] == "fail"}
    assert ill.returncode == 1
    assert failed == {"model", "redis"}
    assert "Traceback" not in ill.stdout + ill.stderr


def test_health_answers_probes_without_redis(
    service: Service, environment: dict[str, str], start_worker: StartWorker
) -> None:
    assert worker(environment, "health", "--live").returncode == 1

    process = start_worker()
    eventually(lambda: worker(environment, "health", "--ready").returncode == 0)
    asked = worker({**environment, "DG_BROKER_URL": "redis://127.0.0.1:1/0"}, "health", "--live")
    assert asked.returncode == 0
    assert json.loads(asked.stdout)["state"] == "ready"

    process.signal(signal.SIGTERM)
    process.exit_code()
    assert worker(environment, "health", "--ready").returncode == 1


def test_a_worker_under_celerys_own_command_is_the_same_worker(service: Service, environment: dict[str, str]) -> None:
    celery = ("-m", "celery", "-A", "worker.app", "worker")
    with running_worker("celery", service.folder, environment, command=celery) as process:
        service.submit("a", params={"num_inference_steps": 1})

        assert service.ended("a").state is JobState.SUCCEEDED
        process.signal(signal.SIGTERM)
        assert process.exit_code() == 0


def test_callbacks_can_leave_from_a_process_of_their_own(
    service: Service, environment: dict[str, str], http_server: HttpServer
) -> None:
    hook = http_server.answer("/hook", Answer(200))
    service.submit("a", callback={"url": hook})
    service.ledger.cancel("a")

    with running_worker(
        "callbacks", service.folder, environment, ready=None, command=("-m", "worker", "callbacks")
    ) as it:
        eventually(lambda: service.ledger.get("a").callback == "delivered")
        (request,) = http_server.requests("/hook")
        assert request.verified(SECRET)["type"] == "edit.cancelled"
        it.signal(signal.SIGTERM)
        assert it.exit_code() == 0


@pytest.mark.parametrize("command", ["run", "callbacks", "check", "health"])
def test_every_command_has_help_with_an_example(command: str) -> None:
    shown = worker({}, command, "-h")

    assert shown.returncode == 0
    assert "Example:" in shown.stdout
