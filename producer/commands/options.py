"""Options that several commands share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from jobs.settings import BrokerSettings, load_settings


def option(*names: str, help: str) -> Any:
    """An option; its help names the default itself, which the signature cannot say."""
    return typer.Option(*names, help=help, show_default=False)


def argument(metavar: str, help: str) -> Any:
    """An argument of a command."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


TABLE_HELP = "CSV, TSV, JSON Lines or Parquet; - reads standard input (CSV, or JSON Lines when it begins with {)."

TableArgument = Annotated[str, argument("TABLE", help=TABLE_HELP)]
Steps = Annotated[
    int | None,
    option("--num-inference-steps", help="Sampling steps, 1 to 1000. [default: 30]"),
]
Guidance = Annotated[
    float | None,
    option("--guidance-scale", help="How closely to follow the prompt. [default: 2.5]"),
]
Seed = Annotated[int | None, option("--seed", help="Same seed, same picture. [default: random, reported]")]
Height = Annotated[int | None, option("--height", help="Output pixels. [default: follows the input]")]
Width = Annotated[int | None, option("--width", help="Output pixels. [default: follows the input]")]
OutputFormat = Annotated[
    str | None,
    option("--output-format", help="png, jpeg or webp. [default: by the output's name, else png]"),
]
Quality = Annotated[int | None, option("--quality", help="Of jpeg and webp, 1 to 100. [default: 95]")]
BrokerUrl = Annotated[
    str | None,
    option("--broker-url", help="Redis. [env: DG_BROKER_URL] [default: redis://localhost:6379/0]"),
]
AsJson = Annotated[bool, option("--json", help="One JSON object a line on stdout. [default: off]")]


def settings_with(broker_url: str | None = None, output: str | None = None) -> BrokerSettings:
    """The settings, with what the command line says instead.

    Args:
        output: a URI, or the path of a folder.
    Raises:
        SettingsError: a variable or option cannot be used.
    """
    given: dict[str, Any] = {"broker_url": broker_url, "output_uri": _as_uri(output)}
    return load_settings(BrokerSettings, **{name: value for name, value in given.items() if value is not None})


def _as_uri(output: str | None) -> str | None:
    is_path = output is not None and "://" not in output
    return Path(str(output)).expanduser().resolve().as_uri() if is_path else output
