"""Settings from the environment: what they accept, and how a wrong value is reported."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.connection import SentinelAddress, hide_password
from jobs.errors import SettingsError
from jobs.settings import load_settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_defaults_are_the_documented_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load_settings()

    assert settings.broker_url == "redis://localhost:6379/0"
    assert settings.output_uri == (tmp_path / "output").as_uri()
    assert (settings.lease_seconds, settings.max_attempts) == (30, 3)
    assert (settings.drain_seconds, settings.job_timeout_seconds) == (60, 900)
    assert settings.flux_kontext_offload is False
    assert settings.flux_kontext_max_sequence_length is None


@pytest.mark.parametrize(("word", "value"), [("TRUE", True), ("1", True), ("on", True), ("no", False), ("Off", False)])
def test_booleans_are_read_in_every_spelling(word: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_FLUX_KONTEXT_OFFLOAD", word)

    assert load_settings().flux_kontext_offload is value


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("DG_FLUX_KONTEXT_OFFLOAD", "ja", "DG_FLUX_KONTEXT_OFFLOAD='ja': expected true/1/yes/on or false/0/no/off"),
        ("DG_FLUX_KONTEXT_MAX_SEQUENCE_LENGTH", "2000", "less than or equal to 1024"),
        ("DG_LEASE_SECONDS", "soon", "DG_LEASE_SECONDS='soon': input should be a valid number"),
        ("DG_MAX_INPUT_BYTES", "12 parsec", "expected a number of bytes such as 64MiB"),
        ("DG_OUTPUT_URI", "out", "expected s3://bucket/prefix or file:///absolute/folder"),
        ("DG_BROKER_URL", "amqp://host", "expected redis://host:port/db"),
        ("DG_BROKER_URL", "redis://host:port", "expected redis://host:port/db"),
        ("DG_BROKER_URL", "redis://:pa/ss@host", "expected redis://host:port/db"),
        ("DG_LEASE_SECONDS", "0.3", "greater than or equal to 1"),
        ("DG_JOB_TIMEOUT_SECONDS", "inf", "finite"),
        ("DG_LOG_LEVEL", "verbose", "'DEBUG', 'INFO'"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as error:
        load_settings()

    assert str(error.value).startswith(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_secrets_never_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRET", SECRET)
    monkeypatch.setenv("DG_BROKER_URL", "redis://:hunter2@redis:6379/0")
    settings = load_settings()

    assert settings.callback_secrets == (SECRET,)
    assert SECRET not in repr(settings)
    assert "hunter2" not in repr(settings)

    monkeypatch.setenv("DG_CALLBACK_SECRET", "hunter2")
    with pytest.raises(SettingsError, match=r"^DG_CALLBACK_SECRET: expected whsec_") as error:
        load_settings()
    assert "hunter2" not in str(error.value)


def test_several_secrets_are_for_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRET", f"{SECRET} whsec_{'A' * 32}")

    assert len(load_settings().callback_secrets) == 2


def test_lists_sizes_and_folders_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_BUCKETS", "cats, dogs")
    monkeypatch.setenv("DG_FILE_ROOTS", f"{tmp_path}:/srv")
    monkeypatch.setenv("DG_MAX_INPUT_BYTES", "1.5MiB")
    settings = load_settings()

    assert settings.buckets == ("cats", "dogs")
    assert settings.file_roots == (tmp_path, Path("/srv"))
    assert settings.max_input_bytes == 1_572_864


def test_a_dot_env_file_is_honoured_and_the_environment_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_text("DG_LEASE_SECONDS=5\nDG_MAX_ATTEMPTS=7\nOTHER=ignored\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DG_MAX_ATTEMPTS", "9")

    assert (load_settings().lease_seconds, load_settings().max_attempts) == (5, 9)


@pytest.mark.parametrize(
    ("broker_url", "redis_url"),
    [
        ("redis://host:1/2", "redis://host:1/2"),
        ("redis+socket:///run/redis.sock?virtual_host=2", "unix:///run/redis.sock?db=2"),
    ],
)
def test_the_ledger_finds_the_brokers_redis(broker_url: str, redis_url: str) -> None:
    assert load_settings(broker_url=broker_url).redis_url == redis_url


@pytest.mark.parametrize(("word", "value"), [("auto", None), ("true", True), ("0", False)])
def test_compiling_is_on_off_or_left_to_the_device(
    word: str, value: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DG_FLUX_KONTEXT_COMPILE", word)

    assert load_settings().flux_kontext_compile is value


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
    address = SentinelAddress.parse(load_settings(broker_url=url).broker_url)

    assert (address.hosts, address.master, address.db, address.celery_url) == (hosts, "m", db, celery)


@pytest.mark.parametrize(
    "url", ["sentinel://h1:1/0", "sentinel://h1;redis://h2/0?master=m", "sentinel://h1/x?master=m"]
)
def test_an_address_of_sentinels_that_lacks_something_is_refused_with_its_form(url: str) -> None:
    with pytest.raises(SettingsError, match=r"DG_BROKER_URL: expected sentinel://.*master=NAME"):
        load_settings(broker_url=url)


def test_no_password_of_an_address_is_shown() -> None:
    assert (
        hide_password("sentinel://u:p@h1;sentinel://u:p@h2/0?master=m")
        == "sentinel://u:***@h1;sentinel://u:***@h2/0?master=m"
    )
    assert hide_password("redis://:p@h/0") == "redis://:***@h/0"
    assert hide_password("redis://h:6379/0") == "redis://h:6379/0"
