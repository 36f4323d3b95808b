"""What the files in deploy/ may name: variables that something reads, and commands that exist."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml
from typer.main import get_command

from producer.cli import app as producer_app
from producer.http.settings import HttpSettings
from tests.requirements import require
from worker.commands import app as worker_app
from worker.settings import Settings

ROOT = Path(__file__).parent.parent.parent
DEPLOY = ROOT / "deploy"

READERS = (Settings, HttpSettings)
VARIABLES = {f"DG_{name.upper()}" for reader in READERS for name in reader.model_fields}
OTHERS_VARIABLES = {
    # boto3's, torch's, Triton's, Hugging Face's, NVIDIA's and Grafana's
    *("AWS_ENDPOINT_URL", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_DEFAULT_REGION"),
    *("OMP_NUM_THREADS", "TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "CUDA_VISIBLE_DEVICES", "HOME", "TMPDIR"),
    *("HF_TOKEN", "HF_HOME", "NVIDIA_VISIBLE_DEVICES", "NVIDIA_DRIVER_CAPABILITIES", "GF_AUTH_ANONYMOUS_ENABLED"),
    *("PATH", "PYTHONUNBUFFERED", "PYTHONDONTWRITEBYTECODE"),
}
COMMANDS = {
    "worker": set(get_command(worker_app).commands),  # type: ignore[attr-defined]
    "producer": set(get_command(producer_app).commands),  # type: ignore[attr-defined]
}


def unknown_variables(names: Iterable[str]) -> list[str]:
    """The variables that nobody would read, such as a misspelt one."""
    return sorted(set(names) - VARIABLES - OTHERS_VARIABLES)


def refused_settings(environment: Mapping[str, str]) -> str:
    """What the settings of workers and of the HTTP door say to these values; "" when they take them."""
    given = {name.removeprefix("DG_").lower(): value for name, value in environment.items() if name in VARIABLES}
    try:
        for reader in READERS:
            reader(**{name: value for name, value in given.items() if name in reader.model_fields})  # type: ignore[arg-type]
    except ValueError as error:
        return str(error)
    return ""


def is_known_command(words: list[str]) -> bool:
    """Whether `worker exporter` and the like is a command of ours."""
    return len(words) >= 2 and words[1] in COMMANDS.get(words[0], set())


def documents(path: Path) -> list[Any]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document is not None]


def shell_variables(text: str) -> set[str]:
    """The `DG_*` variables that a text names."""
    return set(re.findall(r"\bDG_[A-Z_]+\b", text))


def require_tool(found: object, how: str) -> None:
    require(found, f"{how} (pip install -c constraints.txt '.[dev]' brings what PyPI has)")
