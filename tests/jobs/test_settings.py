"""Settings from the environment: how they are read, the broker's side, and the report of a wrong value."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.connection import SentinelAddress, connect
from jobs.errors import SettingsError
from jobs.settings import BrokerSettings, load_settings, unknown_variables


def test_the_defaults_are_the_documented_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load_settings(BrokerSettings)

    assert settings.broker_url == "redis://localhost:6379/0"
    assert settings.output_uri == (tmp_path / "output").as_uri()
    assert (settings.key_prefix, settings.retention_seconds, settings.max_queued) == ("dg:", 604_800, 0)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DG_OUTPUT_URI", "out", "expected s3://bucket/prefix or file:///absolute/folder"),
        ("DG_BROKER_URL", "amqp://host", "expected redis://host:port/db"),
        ("DG_BROKER_URL", "redis://host:port", "expected redis://host:port/db"),
        ("DG_BROKER_URL", "redis://:pa/ss@host", "a password with / ? or # must be percent-encoded: %2F for /"),
        ("DG_BROKER_URL", "redis://me:pa#ss@host/0", "a password with / ? or # must be percent-encoded: %2F for /"),
        (
            "DG_BROKER_URL",
            "redis://host/0?socket_timeuot=3",
            "no option 'socket_timeuot'; did you mean 'socket_timeout'?",
        ),
        ("DG_BROKER_URL", "redis://host/0?ssl_cert_reqs=none", "option 'ssl_cert_reqs' is for TLS: write rediss://"),
        ("DG_BROKER_URL", "redis://host/0?colour=red", "there is no option 'colour'"),
        (
            "DG_BROKER_URL",
            "redis://host/jobs",
            "behind the last / stands the number of a database: redis://host:port/0",
        ),
        ("DG_BROKER_URL", "redis://host/0?socket_timeout=soon", "expected redis://host:port/db"),
        (
            "DG_BROKER_URL",
            "rediss://host/0?ssl_cert_reqs=never",
            "ssl_cert_reqs is 'never', expected required, optional",
        ),
        ("DG_RETENTION_SECONDS", "soon", "DG_RETENTION_SECONDS='soon': input should be a valid number"),
        ("DG_MAX_QUEUED", "-1", "DG_MAX_QUEUED='-1': input should be greater than or equal to 0"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as error:
        load_settings(BrokerSettings)

    assert str(error.value).startswith(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("given", "used"),
    [
        ("rediss://host/0?ssl_cert_reqs=CERT_REQUIRED", "rediss://host/0?ssl_cert_reqs=required"),
        ("rediss://host/0?ssl_cert_reqs=CERT_NONE&ssl_ca_certs=/ca.pem", None),
        ("rediss://host/0?ssl_cert_reqs=optional", "rediss://host/0?ssl_cert_reqs=optional"),
        ("redis://host/0?socket_timeout=3&health_check_interval=5&max_connections=9&db=2", None),
        ("redis://me:p%2Fa%40ss@host:6380/1", None),
        ("redis://:p@ss@host", None),
        ("redis+socket:///run/redis.sock?virtual_host=3", None),
    ],
)
def test_words_of_celery_and_options_of_redis_py_are_taken(given: str, used: str | None) -> None:
    used = used or given.replace("CERT_NONE", "none")

    settings = load_settings(BrokerSettings, broker_url=given)

    assert settings.broker_url == used
    with connect(settings.redis_url) as redis:  # it knows every option
        redis.connection_pool.make_connection()


def test_a_password_of_the_broker_never_shows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_BROKER_URL", "redis://:hunter2@redis:6379/0")
    assert "hunter2" not in repr(load_settings(BrokerSettings))

    monkeypatch.setenv("DG_BROKER_URL", "amqp://:hunter2@redis")
    with pytest.raises(SettingsError, match=r"^DG_BROKER_URL: expected redis://") as error:
        load_settings(BrokerSettings)
    assert "hunter2" not in str(error.value)


def test_a_producer_holds_no_secret_of_the_worker_and_ignores_its_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRET", "hunter2")
    monkeypatch.setenv("DG_FLUX_KONTEXT_PRECISION", "fp4")

    settings = load_settings(BrokerSettings)

    assert "hunter2" not in str(settings.model_dump())
    assert not hasattr(settings, "callback_secret")


def test_an_empty_variable_counts_as_unset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("DG_MAX_QUEUED=7\nDG_RETENTION_SECONDS=\n")
    monkeypatch.chdir(tmp_path)
    for name in ("DG_BROKER_URL", "DG_OUTPUT_URI", "DG_MAX_QUEUED"):
        monkeypatch.setenv(name, "")

    settings = load_settings(BrokerSettings)

    assert settings.broker_url == "redis://localhost:6379/0"
    assert settings.output_uri == (tmp_path / "output").as_uri()
    assert (settings.max_queued, settings.retention_seconds) == (7, 604_800)


def test_a_dot_env_file_is_honoured_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("DG_RETENTION_SECONDS=5\nDG_MAX_QUEUED=7\nOTHER=ignored\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DG_MAX_QUEUED", "9")

    settings = load_settings(BrokerSettings)

    assert (settings.retention_seconds, settings.max_queued) == (5, 9)


@pytest.mark.parametrize(
    ("broker_url", "redis_url"),
    [
        ("redis://host:1/2", "redis://host:1/2"),
        ("redis+socket:///run/redis.sock?virtual_host=2", "unix:///run/redis.sock?db=2"),
    ],
)
def test_the_ledger_finds_the_brokers_redis(broker_url: str, redis_url: str) -> None:
    assert load_settings(BrokerSettings, broker_url=broker_url).redis_url == redis_url


@pytest.mark.parametrize(
    ("url", "hosts", "db", "celery"),
    [
        (
            "sentinel://u:p%40@h1:1;sentinel://h2/2?master=m",
            (("h1", 1), ("h2", 26379)),
            2,
            "sentinel://u:p%40@h1:1/2;sentinel://u:p%40@h2:26379/2",
        ),
        ("sentinel://h1?master=m", (("h1", 26379),), 0, "sentinel://h1:26379/0"),
    ],
)
def test_one_address_of_sentinels_says_all_that_ledger_and_celery_need(
    url: str, hosts: tuple[tuple[str, int], ...], db: int, celery: str
) -> None:
    address = SentinelAddress.parse(load_settings(BrokerSettings, broker_url=url).broker_url)

    assert (address.hosts, address.master, address.db, address.celery_url) == (hosts, "m", db, celery)


@pytest.mark.parametrize(
    "url", ["sentinel://h1:1/0", "sentinel://h1;redis://h2/0?master=m", "sentinel://h1/x?master=m"]
)
def test_an_address_of_sentinels_that_lacks_something_is_refused_with_its_form(url: str) -> None:
    with pytest.raises(SettingsError, match=r"DG_BROKER_URL: expected sentinel://.*master=NAME"):
        load_settings(BrokerSettings, broker_url=url)


def test_a_misspelt_variable_is_named_with_the_one_that_was_meant(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DG_BROKER_URI", "redis://elsewhere")
    monkeypatch.setenv("DG_BROKER_URL", "redis://here")
    monkeypatch.setenv("OTHER_BROKER_URI", "")
    (tmp_path / ".env").write_text("DG_SOMETHING_ELSE=1\n")

    assert unknown_variables(BrokerSettings) == [
        "DG_BROKER_URI is no setting: did you mean DG_BROKER_URL?",
        "DG_SOMETHING_ELSE is no setting, see docs/configuration.md",
    ]
