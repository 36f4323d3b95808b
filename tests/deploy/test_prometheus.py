"""Alerts and dashboard: by promtool, and against what a real Prometheus has scraped from our own endpoints."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from jobs.settings import load_settings
from tests.deploy.names import DEPLOY, ROOT, documents
from tests.requirements import require
from tests.servers.redis import free_port, running_redis
from tests.waiting import PATIENCE_SECONDS, eventually
from tests.worker.life import a_whole_life
from worker.metrics.queue import queue_registry
from worker.metrics.server import MetricsServer
from worker.settings import Settings

RULES = DEPLOY / "prometheus" / "rules.yaml"
ALERTS = [rule for group in documents(RULES)[0]["groups"] for rule in group["rules"]]
PANELS = json.loads((DEPLOY / "grafana" / "kontext.json").read_text())["panels"]
QUERIES = {f"{panel['title']}: {target['expr']}": target["expr"] for panel in PANELS for target in panel["targets"]}


def promtool(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    require(shutil.which("promtool"), "promtool is not installed: sudo apt-get install prometheus")
    return subprocess.run(["promtool", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def prometheus(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Prometheus that has scraped the exporter and a worker a few times; yields its address."""
    require(shutil.which("prometheus"), "prometheus is not installed: sudo apt-get install prometheus")
    folder = tmp_path_factory.mktemp("prometheus")
    port = free_port()
    with running_redis(tmp_path_factory.mktemp("redis")) as redis:
        registry, _ = queue_registry(load_settings(Settings, broker_url=redis.url))
        servers = {
            "kontext-exporter": MetricsServer("127.0.0.1", 0, registry),
            "kontext-worker": MetricsServer("127.0.0.1", 0, a_whole_life()),
        }
        scrapes = [
            {"job_name": name, "static_configs": [{"targets": [f"127.0.0.1:{server.port}"]}]}
            for name, server in servers.items()
        ]
        config = {"global": {"scrape_interval": "1s", "evaluation_interval": "1s"}, "scrape_configs": scrapes}
        (folder / "prometheus.yaml").write_text(yaml.safe_dump({**config, "rule_files": [str(RULES)]}))
        with (folder / "log").open("wb") as log:
            process = subprocess.Popen(
                [
                    "prometheus",
                    f"--config.file={folder}/prometheus.yaml",
                    f"--storage.tsdb.path={folder}/data",
                    f"--web.listen-address=127.0.0.1:{port}",
                ],
                stdout=log,
                stderr=log,
            )
        try:
            url = f"http://127.0.0.1:{port}"
            eventually(lambda: _value(url, "min(count_over_time(up[1m])) > 2"), what=f"scrapes, see {folder}/log")
            yield url
        finally:
            process.kill()
            process.wait()
            for server in servers.values():
                server.close()


def test_promtool_has_nothing_to_say_about_the_alerts() -> None:
    ended = promtool("check", "rules", "--lint-fatal", RULES)

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_fires_when_its_cause_is_there_and_only_then() -> None:
    ended = promtool("test", "rules", RULES.with_name("rules_test.yaml"))

    assert ended.returncode == 0, ended.stdout + ended.stderr


def test_each_alert_is_tried_and_has_its_paragraph_for_whoever_is_woken() -> None:
    tried = set(re.findall(r"alertname: (\w+)", RULES.with_name("rules_test.yaml").read_text()))
    paragraphs = set(re.findall(r"^### (Kontext\w+)$", (ROOT / "docs" / "operations.md").read_text(), re.MULTILINE))
    names = {alert["alert"] for alert in ALERTS}

    assert tried == names
    assert paragraphs == names
    for alert in ALERTS:
        assert alert["annotations"]["runbook"] == f"docs/operations.md#{alert['alert'].lower()}"
        assert alert["labels"]["severity"] in ("page", "warn")


def test_alerts_and_dashboard_ask_for_metrics_of_the_page_only() -> None:
    listed = set(re.findall(r"^\| `(kontext_\w+)`", (ROOT / "docs" / "metrics.md").read_text(), re.MULTILINE))
    asked = {
        re.sub(r"_(sum|count|bucket)$", "", name)
        for text in [*QUERIES.values(), *(alert["expr"] for alert in ALERTS)]
        for name in re.findall(r"kontext_\w+", text)
    }

    assert asked
    assert asked <= listed


def test_every_query_of_the_dashboard_has_an_answer(prometheus: str) -> None:
    answers = {name: promtool("query", "instant", prometheus, query) for name, query in QUERIES.items()}

    assert {name: answer.stderr for name, answer in answers.items() if answer.returncode != 0} == {}
    assert [name for name, answer in answers.items() if not answer.stdout.strip()] == []


def test_every_alert_is_asked_by_a_real_prometheus_and_none_fires_over_a_service_that_is_well(prometheus: str) -> None:
    with urlopen(f"{prometheus}/api/v1/rules", timeout=PATIENCE_SECONDS) as answer:
        rules = [rule for group in json.load(answer)["data"]["groups"] for rule in group["rules"]]

    assert {rule["name"] for rule in rules} == {alert["alert"] for alert in ALERTS}
    assert {rule["name"]: rule.get("lastError") for rule in rules if rule["health"] == "err"} == {}
    assert [rule["name"] for rule in rules if rule["state"] == "firing"] == []


def _value(url: str, query: str) -> bool:
    try:
        with urlopen(f"{url}/api/v1/query?query={quote(query)}", timeout=PATIENCE_SECONDS) as answer:
            return bool(json.load(answer)["data"]["result"])
    except OSError:
        return False
