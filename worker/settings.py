"""Every setting of the worker: its own, its storage's and the broker's."""

from __future__ import annotations

import os
import socket
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, SecretStr, field_validator
from pydantic_settings import BaseSettings, DotEnvSettingsSource, NoDecode, PydanticBaseSettingsSource

from jobs.errors import SettingsError
from jobs.settings import Bytes, BytesOrZero, Seconds, SecondsOrZero, Switch
from kontext.choices import (
    DEFAULT_CACHE_BYTES,
    DEFAULT_LORA_BYTES,
    Attention,
    CpuKernels,
    Precision,
)
from kontext.config import LEAST_MOST_PIXELS, LONGEST_TEXT, SHORTEST_TEXT
from kontext.step_cache import StepCache, parse_step_cache
from storage.settings import StorageSettings
from storage.signing import CallbackSecrets
from worker.health import default_runtime_dir
from worker.untaken import MUTE_SECONDS


def default_lora_dir() -> Path:
    """Folder of LoRA files when `DG_LORA_CACHE_DIR` is not set: in the user's cache."""
    try:
        cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    except RuntimeError:  # a user id without a home, as containers have
        return default_runtime_dir() / "loras"
    return cache / "kontext-edits" / "loras"


class Settings(StorageSettings):
    """Every `DG_*` variable, with its default; the field `lease_seconds` is `DG_LEASE_SECONDS`."""

    flux_kontext_model: str | None = Field(None, description="model folder or hub id; default: the bundled tiny model")
    flux_kontext_engine: str = Field("native", description="native, official, standin, or module:callable")
    flux_kontext_device: str = Field("auto", description="auto, cuda, cuda:N, mps or cpu")
    flux_kontext_offload: Switch = Field(
        False, description="stream weights to the device within a budget; auto: where the model does not fit"
    )
    flux_kontext_vram_budget: Bytes | None = Field(
        None, description="with offload: most of the device's memory to use; default 16GiB, with auto all that is free"
    )
    flux_kontext_cache_bytes: BytesOrZero = Field(
        DEFAULT_CACHE_BYTES, description="host memory for prompts and pictures encoded before; 0: none"
    )
    flux_kontext_compile: Switch = Field(
        None, description="compile transformer blocks and autoencoder norms; default auto: on CUDA"
    )
    flux_kontext_attention: Attention = Field("auto", description="attention kernel; auto measures them once on CUDA")
    flux_kontext_kernels: CpuKernels = Field(
        "auto", description="on a CPU: fast ones also for bfloat16, or the reference's also for float32"
    )
    flux_kontext_precision: Precision = Field("bf16", description="fp8: faster linears, not exact")
    flux_kontext_cache: Annotated[StepCache | None, NoDecode, BeforeValidator(parse_step_cache)] = Field(
        None, description="first-block or first-block:0.08: skip steps that hardly differ, not exact; default: off"
    )
    flux_kontext_max_sequence_length: int | None = Field(
        None,
        ge=SHORTEST_TEXT,
        le=LONGEST_TEXT,
        description=f"T5 tokens ({SHORTEST_TEXT} to {LONGEST_TEXT}); default: the model's, else 512",
    )
    flux_kontext_max_pixels: int | None = Field(
        None,
        ge=LEAST_MOST_PIXELS,
        description="larger outputs are sampled smaller and enlarged; default: the model's, 2 * 2^20 for the 12B",
    )

    flux_kontext_lora_bytes: BytesOrZero = Field(
        DEFAULT_LORA_BYTES, description="device memory for LoRAs of jobs before, host memory with offload; 0: none"
    )
    max_lora_bytes: Bytes = Field(2**30, description="largest LoRA file")
    lora_cache_dir: Path = Field(default_factory=default_lora_dir, description="folder that keeps LoRA files")
    lora_cache_bytes: Bytes = Field(10 * 2**30, description="size of that folder; what was not used for longest goes")

    prepared_dir: Path | None = Field(
        None, description="folder for what `worker prepare` or a first start has compiled; default: none"
    )

    lease_seconds: float = Field(
        30, ge=1, allow_inf_nan=False, description="a silent worker's job runs again after this"
    )
    max_attempts: int = Field(3, ge=1, description="runs of one job before it fails")
    outage_seconds: SecondsOrZero = Field(
        600, description="how long a job waits in all for stores and hosts that are away"
    )
    job_timeout_seconds: Seconds = Field(
        900, description="longest time of a run's own work, without its waits for the GPU"
    )
    drain_seconds: float = Field(60, ge=0, description="time a running job gets at SIGTERM before it is handed back")
    stall_seconds: Seconds = Field(300, description="a step longer than this means a hung device: the worker exits")
    untaken_seconds: SecondsOrZero = Field(
        300,
        description="an idle worker that takes no waiting message for this long, over 30, exits; 0: never",
    )

    callback_secret: SecretStr | None = Field(
        None, repr=False, description="whsec_...; several, separated by blanks, to rotate"
    )
    callback_secrets: SecretStr | None = Field(
        None, repr=False, description="host=whsec_..., separated by blanks: secrets of single receivers"
    )
    callback_timeout_seconds: Seconds = Field(20, description="time for one callback request")

    worker_name: str = Field(
        default_factory=lambda: f"{socket.gethostname()}-{os.getpid()}", description="shown in status"
    )
    decode_seconds: Seconds = Field(30, description="longest time to decode one input image")
    decode_memory: BytesOrZero = Field(3 * 2**30, description="memory of a process that decodes inputs; 0: no bound")
    worker_threads: int = Field(6, ge=1, description="jobs in flight: one samples while others download and upload")
    runtime_dir: Path = Field(default_factory=default_runtime_dir, description="where a worker leaves its health file")
    metrics_port: int | None = Field(
        None, ge=1, le=65535, description="HTTP port of /livez, /readyz and /metrics; default: none"
    )
    metrics_host: str = Field("127.0.0.1", description="address that port is open on; 0.0.0.0 or :: for all")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="how much is logged")

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, env_settings, DotEnvWithoutCode(settings_cls), file_secret_settings

    log_format: Literal["text", "json"] = Field("text", description="lines for people, or one JSON object a line")

    @field_validator("untaken_seconds")
    @classmethod
    def _a_worker_says_that_it_is_mute_before_it_ends(cls, value: float) -> float:
        if 0 < value <= MUTE_SECONDS:
            raise ValueError(
                f"expected more than {MUTE_SECONDS:g}, or 0 for never; a consumer may need 20 s to reconnect"
            )
        return value

    @field_validator("callback_secret")
    @classmethod
    def _secrets_are_standard_webhooks_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        CallbackSecrets.parse(_text(value), "")
        return value

    @field_validator("callback_secrets")
    @classmethod
    def _hosts_have_secrets(cls, value: SecretStr | None) -> SecretStr | None:
        CallbackSecrets.parse("", _text(value))
        return value

    @property
    def signing(self) -> CallbackSecrets:
        """The secrets that callbacks are signed with."""
        return CallbackSecrets.parse(_text(self.callback_secret), _text(self.callback_secrets))


class DotEnvWithoutCode(DotEnvSettingsSource):
    """Reads `.env`, but takes no code from it: a file in the working directory must not run in this process."""

    def __call__(self) -> dict[str, Any]:
        values = super().__call__()
        engine = values.get("flux_kontext_engine", "")
        if ":" in engine and "flux_kontext_engine" not in self.current_state:
            raise SettingsError(
                f"DG_FLUX_KONTEXT_ENGINE={engine!r} in .env: an engine by module:callable is code, "
                "so set it in the environment"
            )
        if "prepared_dir" in values and "prepared_dir" not in self.current_state:
            raise SettingsError(
                f"DG_PREPARED_DIR={values['prepared_dir']!r} in .env: what is prepared is code, "
                "so set it in the environment"
            )
        return values


def _text(secret: SecretStr | None) -> str:
    return secret.get_secret_value() if secret else ""
