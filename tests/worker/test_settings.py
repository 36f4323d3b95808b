"""Settings of the worker: defaults, spellings, secrets, and the report of a wrong value."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest

from jobs.errors import SettingsError
from jobs.settings import load_settings
from kontext.attention_kernels import KERNELS
from kontext.choices import Attention
from worker.settings import Settings

SECRET = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw"


def test_the_defaults_are_the_documented_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    settings = load_settings(Settings)

    assert settings.broker_url == "redis://localhost:6379/0"
    assert (settings.lease_seconds, settings.max_attempts) == (30, 3)
    assert (settings.drain_seconds, settings.job_timeout_seconds) == (60, 900)
    assert settings.flux_kontext_offload is False
    assert settings.flux_kontext_max_sequence_length is None


@pytest.mark.parametrize(("word", "value"), [("TRUE", True), ("1", True), ("on", True), ("no", False), ("Off", False)])
def test_booleans_are_read_in_every_spelling(word: str, value: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_FLUX_KONTEXT_OFFLOAD", word)

    assert load_settings(Settings).flux_kontext_offload is value


@pytest.mark.parametrize(("word", "value"), [("auto", None), ("true", True), ("0", False)])
@pytest.mark.parametrize("name", ["compile", "offload"])
def test_compiling_and_offload_are_on_off_or_left_to_the_device(
    name: str, word: str, value: bool | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(f"DG_FLUX_KONTEXT_{name.upper()}", word)

    assert getattr(load_settings(Settings), f"flux_kontext_{name}") is value


@pytest.mark.parametrize(("given", "budget"), [({}, None), ({"DG_FLUX_KONTEXT_VRAM_BUDGET": "12GiB"}, 12 * 2**30)])
def test_a_budget_that_is_not_given_is_left_to_the_engine(
    given: dict[str, str], budget: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in given.items():
        monkeypatch.setenv(name, value)

    assert load_settings(Settings).flux_kontext_vram_budget == budget


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        (
            "DG_FLUX_KONTEXT_OFFLOAD",
            "ja",
            "DG_FLUX_KONTEXT_OFFLOAD='ja': expected auto, true/1/yes/on or false/0/no/off",
        ),
        ("DG_FLUX_KONTEXT_MAX_SEQUENCE_LENGTH", "2000", "less than or equal to 1024"),
        ("DG_FLUX_KONTEXT_PRECISION", "fp4", "'bf16' or 'fp8'"),
        (
            "DG_FLUX_KONTEXT_CACHE",
            "0.1",
            "DG_FLUX_KONTEXT_CACHE='0.1': expected off, first-block, or first-block:THRES",
        ),
        ("DG_FLUX_KONTEXT_CACHE", "first-block:8", "with a threshold from 0 to 1, such as first-block:0.08"),
        ("DG_FLUX_KONTEXT_KERNELS", "slow", "'auto', 'reference' or 'fast'"),
        ("DG_LEASE_SECONDS", "soon", "DG_LEASE_SECONDS='soon': input should be a valid number"),
        ("DG_LEASE_SECONDS", "0.3", "greater than or equal to 1"),
        ("DG_JOB_TIMEOUT_SECONDS", "inf", "finite"),
        ("DG_UNTAKEN_SECONDS", "30", "DG_UNTAKEN_SECONDS='30': expected more than 30, or 0 for never"),
        ("DG_UNTAKEN_SECONDS", "0.5", "expected more than 30, or 0 for never"),
        ("DG_UNTAKEN_SECONDS", "-1", "greater than or equal to 0"),
        ("DG_LOG_LEVEL", "verbose", "'DEBUG', 'INFO'"),
        ("DG_BROKER_URL", "amqp://host", "expected redis://host:port/db"),
    ],
)
def test_a_wrong_value_is_one_line_that_names_the_variable(
    name: str, value: str, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)

    with pytest.raises(SettingsError) as error:
        load_settings(Settings)

    assert str(error.value).startswith(name)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("value", ["0", "30.5", "300"])
def test_a_worker_that_takes_nothing_ends_never_or_after_it_has_said_so(
    value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DG_UNTAKEN_SECONDS", value)

    assert load_settings(Settings).untaken_seconds == float(value)


def test_the_attention_kernels_that_settings_accept_are_those_the_engine_has() -> None:
    assert get_args(Attention) == ("auto", *KERNELS)


def test_secrets_never_show(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRET", SECRET)
    settings = load_settings(Settings)

    assert settings.signing.default == (SECRET,)
    assert SECRET not in repr(settings)

    monkeypatch.setenv("DG_CALLBACK_SECRET", "hunter2")
    with pytest.raises(SettingsError, match=r"^DG_CALLBACK_SECRET: expected whsec_") as error:
        load_settings(Settings)
    assert "hunter2" not in str(error.value)


def test_several_secrets_are_for_rotation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRET", f"{SECRET} whsec_{'A' * 32}")

    assert len(load_settings(Settings).signing.default) == 2


def test_empty_variables_of_the_worker_count_as_unset(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("DG_CALLBACK_SECRET", "DG_FLUX_KONTEXT_MODEL", "DG_FILE_ROOTS", "DG_LEASE_SECONDS"):
        monkeypatch.setenv(name, "")

    settings = load_settings(Settings)

    assert settings.signing.default == ()
    assert settings.flux_kontext_model is None
    assert (settings.file_roots, settings.lease_seconds) == ((), 30)


def test_what_is_prepared_is_code_and_never_named_by_dotenv(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DG_PREPARED_DIR=prepared\n")

    with pytest.raises(SettingsError, match=r"^DG_PREPARED_DIR='prepared' in \.env: .* environment"):
        load_settings(Settings)

    monkeypatch.setenv("DG_PREPARED_DIR", "/prepared")
    assert load_settings(Settings).prepared_dir == Path("/prepared")


def test_code_of_an_engine_is_named_by_the_environment_and_never_by_dotenv(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / ".env").write_text("DG_FLUX_KONTEXT_ENGINE=evil:make\nDG_LEASE_SECONDS=7\n")

    with pytest.raises(SettingsError, match=r"^DG_FLUX_KONTEXT_ENGINE='evil:make' in \.env: .* environment"):
        load_settings(Settings)
    monkeypatch.setenv("DG_FLUX_KONTEXT_ENGINE", "mine:make")
    assert load_settings(Settings).flux_kontext_engine == "mine:make"

    monkeypatch.delenv("DG_FLUX_KONTEXT_ENGINE")
    (tmp_path / ".env").write_text("DG_FLUX_KONTEXT_ENGINE=official\nDG_LEASE_SECONDS=7\n")
    assert load_settings(Settings).flux_kontext_engine == "official"
    assert load_settings(Settings).lease_seconds == 7


OTHER, PORT, OLD = (f"whsec_{letter * 32}" for letter in "ABC")


@pytest.mark.parametrize(
    ("url", "secrets"),
    [
        ("https://hooks.example/a?b", (OTHER, OLD)),
        ("https://HOOKS.example.:443/a", (OTHER, OLD)),
        ("https://hooks.example:8443/", (PORT,)),
        ("http://[::1]:9000/", (OLD,)),
        ("https://sub.hooks.example/", (SECRET,)),
        ("https://elsewhere.example/", (SECRET,)),
    ],
)
def test_a_receiver_may_have_secrets_of_its_own(
    url: str, secrets: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRET", SECRET)
    own = f"hooks.example={OTHER} hooks.example={OLD} Hooks.example:8443={PORT} [::1]={OLD}"
    monkeypatch.setenv("DG_CALLBACK_SECRETS", own)

    settings = load_settings(Settings)

    assert settings.signing.of(url) == secrets
    assert not any(secret in repr(settings) for secret in (SECRET, OTHER, OLD, PORT))


@pytest.mark.parametrize("entry", [OTHER, "h", "h=", f"h={SECRET}x!", f"https://h={SECRET}", f"={SECRET}", "h=hunter2"])
def test_an_entry_without_host_or_secret_is_named_without_showing_it(
    entry: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DG_CALLBACK_SECRETS", entry)
    with pytest.raises(SettingsError, match=r"^DG_CALLBACK_SECRETS: expected host=whsec_") as error:
        load_settings(Settings)
    assert "hunter2" not in str(error.value)
    assert SECRET not in str(error.value)
