"""Options that several commands share."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import wraps
from inspect import Parameter, Signature, signature
from pathlib import Path
from types import NoneType
from typing import Annotated, Any, Literal, get_args, get_origin

import typer

from jobs.errors import SettingsError
from jobs.schema import EditParams
from jobs.settings import BrokerSettings, load_settings
from producer.table.cells import CellProblem
from producer.table.loras import read_loras
from producer.table.paths import WORKING_FOLDER, LocalFiles


def option(*names: str, help: str) -> Any:
    """An option; its help names the default itself, which the signature cannot say."""
    return typer.Option(*names, help=help, show_default=False)


def argument(metavar: str, help: str) -> Any:
    """An argument of a command."""
    return typer.Argument(metavar=metavar, help=help, show_default=False)


TABLE_HELP = "CSV, TSV, JSON, JSON Lines, Parquet, Excel, or a folder of them; - reads standard input."

TableArgument = Annotated[str, argument("TABLE", help=TABLE_HELP)]
BrokerUrl = Annotated[
    str | None,
    option("--broker-url", help="Redis. [env: DG_BROKER_URL] [default: redis://localhost:6379/0]"),
]
Params = dict[str, Any] | None
"""The values of the options that `takes_params` adds, by the names of `EditParams`."""
ImageColumn = Annotated[
    str | None, option("--image-column", help="Column of the images. [default: image, or a name that other tools use]")
]
PromptColumn = Annotated[
    str | None, option("--prompt-column", help="Column of the prompts. [default: prompt, or a name of other tools]")
]
OutputColumn = Annotated[
    str | None, option("--output-column", help="Column with names for the outputs. [default: output]")
]
Bom = Annotated[
    bool, option("--bom", help="Begin results.csv with a byte order mark, for Excel's accents. [default: off]")
]
Delimiter = Annotated[
    str | None,
    option("--delimiter", help="Sign between the cells of results.csv: , ; | or tab. [default: ,]"),
]
KeepFormulas = Annotated[
    bool,
    option(
        "--keep-formulas",
        help="Write cells as they are that spreadsheets compute. [default: off, behind an apostrophe]",
    ),
]
Rows = Annotated[
    str | None,
    option("--rows", help="Places of rows, such as 0:100, 100: or 0,5; the first is 0. [default: all]"),
]
AsJson = Annotated[bool, option("--json", help="One JSON object a line on stdout. [default: off]")]


def takes_params(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of `EditParams`, and their values as its argument `params`.

    The options stand where `params` stands among the command's own; None means not given. A field for which the
    command has an option of its own is left to it.
    """
    own_parameters = signature(command, eval_str=True).parameters
    names = [name for name in EditParams.model_fields if name not in own_parameters]

    @wraps(command)
    def with_options(**given: Any) -> None:
        params = {name: given.pop(name) for name in names}
        params["loras"] = _local_loras(params.get("loras"))
        command(**given, params=params)

    parameters: list[Parameter] = []
    for own in own_parameters.values():
        parameters += _param_options(names) if own.name == "params" else [own]
    shown: Any = with_options
    shown.__signature__ = Signature(parameters)
    shown.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return with_options


def _param_options(names: Collection[str]) -> list[Parameter]:
    options = []
    for name, field in EditParams.model_fields.items():
        if name not in names:
            continue
        extra = field.json_schema_extra
        value = "off" if field.default is False else field.default
        default = extra["absent"] if isinstance(extra, dict) else value
        shown = option(f"--{name.replace('_', '-')}", help=f"{field.description} [default: {default}]")
        annotation: Any = Annotated[_option_type(field.annotation), shown]
        options.append(Parameter(name, Parameter.POSITIONAL_OR_KEYWORD, default=None, annotation=annotation))
    return options


def _option_type(annotation: Any) -> Any:
    """The type of an option for a field: the field's own, or a string for a choice, which the schema checks."""
    if get_origin(annotation) is tuple:
        return list[str] | None
    members = (annotation,) if get_origin(annotation) is Literal else get_args(annotation) or (annotation,)
    (kind,) = [member for member in members if member is not NoneType]
    return (str if get_origin(kind) is Literal else kind) | None


def _local_loras(loras: list[str] | None) -> list[Any] | None:
    """LoRAs of the command line; relative paths start from the working directory."""
    try:
        return read_loras(loras, LocalFiles(Path.cwd(), WORKING_FOLDER, "LoRA file")) if loras else None
    except CellProblem as problem:
        raise SettingsError(f"--loras {problem.value}: {problem.remedy}") from problem


def settings_with(broker_url: str | None = None, output: str | None = None) -> BrokerSettings:
    """The settings, with what the command line says instead.

    Args:
        output: a URI, or the path of a folder.
    Raises:
        SettingsError: a variable or option cannot be used.
    """
    given: dict[str, Any] = {"broker_url": broker_url, "output_uri": None if output is None else folder_uri(output)}
    return load_settings(BrokerSettings, **{name: value for name, value in given.items() if value is not None})


def folder_uri(place: str | None) -> str:
    """The URI of a folder or prefix that an option names; empty when it names none."""
    if not place or "://" in place:
        return (place or "").rstrip("/")
    return Path(place).expanduser().resolve().as_uri()
