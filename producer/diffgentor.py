"""The command line of the batch tool diffgentor for its backend `flux_kontext_official`, over `producer run`.

    python -m producer.diffgentor edit --backend flux_kontext_official --model_name PATH --input data.csv

What is the same and what is not stands in `docs/from-diffgentor.md`. The other commands and backends of that tool are
answered by one line.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import Error, SettingsError
from producer.commands.options import option
from producer.commands.run import run_table
from producer.embedded.run import RunOptions
from producer.exit_codes import exit_code_of
from producer.table.columns import ColumnNames
from producer.table.plan import RowDefaults
from producer.table.selection import ALL_ROWS, RowSelection
from producer.terminal import say

BACKEND = "flux_kontext_official"
OTHERS = (
    *("diffusers", "xdit", "openai", "google_genai", "gemini", "step1x", "bagel", "emu35", "dreamomni2"),
    *("hunyuan_image_3", "deepgen"),
)
THEIR_TOOL = "diffgentor itself serves it: https://github.com/ruihanglix/diffgentor"

IMAGE_COLUMNS = ("input_images", "image_url", "image", "image_uri", "input_image")
PROMPT_COLUMNS = ("instruction", "prompt")

# Options that the other tool takes and this backend of it has no use for, with the number of their values.
UNUSED = {
    **{f"--{name}": 1 for name in ("model_type", "torch_dtype", "optimize", "attention_backend", "cache_type")},
    **{f"--{name}": 1 for name in ("timeout", "api_max_retries", "retry_delay", "max_global_workers", "num_processes")},
    **{f"--{name}": 1 for name in ("log_dir", "batch_size", "true_cfg_scale", "negative_prompt")},
    **{f"--enable_{name}": 0 for name in ("compile", "cpu_offload", "vae_slicing", "vae_tiling")},
}
# Those that would change which rows are done, or how: leaving them out silently would be wrong.
REFUSED = {
    "--num_nodes": "several machines share a table through one queue: producer submit, and worker run on each",
    "--node_rank": "several machines share a table through one queue: producer submit, and worker run on each",
    "--prompt_enhance_type": "prompts are used as they stand; rewrite them before, in the table",
}

app = typer.Typer(
    name="diffgentor",
    help="The known command line for FLUX.1 Kontext edits of a table, served by kontext-edits.\n\n"
    "Example: diffgentor edit --backend flux_kontext_official --model_name PATH --input data.csv --output_dir output",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True})
def edit(
    context: typer.Context,
    model_name: Annotated[str, option("--model_name", help="Folder or Hugging Face name of the model.")],
    source: Annotated[str, option("--input", help="CSV or other table, or a folder of Parquet files.")],
    backend: Annotated[
        str, option("--backend", help="Only flux_kontext_official is served here. [default: diffusers]")
    ] = "diffusers",
    output_dir: Annotated[Path, option("--output_dir", help="Where images and results go. [default: ./output]")] = Path(
        "output"
    ),
    output_csv: Annotated[
        Path | None, option("--output_csv", help="Results. [default: OUTPUT_DIR/results.csv]")
    ] = None,
    output_name_column: Annotated[
        str | None, option("--output_name_column", help="Column with names of outputs. [default: 000000.png, ...]")
    ] = None,
    instruction_key: Annotated[
        str | None, option("--instruction_key", help="Column with the instruction. [default: instruction, else prompt]")
    ] = None,
    image_cache_dir: Annotated[
        Path | None, option("--image_cache_dir", help="Keep downloaded images here. [default: they are not kept]")
    ] = None,
    num_inference_steps: Annotated[
        int | None, option("--num_inference_steps", help="Sampling steps. [default: 30]")
    ] = None,
    guidance_scale: Annotated[float | None, option("--guidance_scale", help="Guidance. [default: 2.5]")] = None,
    seed: Annotated[int | None, option("--seed", help="For every row. [default: random, reported]")] = None,
    filter_rows: Annotated[
        str | None, option("--filter_rows", help="Places of rows: 0:100, 100: or 0,5. [default: all]")
    ] = None,
    no_resume: Annotated[bool, option("--no_resume", help="Do rows again that are done. [default: off]")] = False,
    resume: Annotated[
        bool, option("--resume", help="Go on where an earlier run stopped, as it does anyway. [default: on]")
    ] = True,
    num_gpus: Annotated[
        int | None, option("--num_gpus", help="Workers, one for each GPU. [default: every visible GPU]")
    ] = None,
    device: Annotated[
        str | None, option("--device", help="cuda, cuda:N or cpu. [env: DG_FLUX_KONTEXT_DEVICE] [default: auto]")
    ] = None,
    max_retries: Annotated[
        int | None, option("--max_retries", help="Further attempts of a row that fails. [default: 2]")
    ] = None,
) -> None:
    """Edit the images of a table, as `diffgentor edit --backend flux_kontext_official` does.

    Further settings are variables, DG_FLUX_KONTEXT_OFFLOAD and DG_FLUX_KONTEXT_MAX_SEQUENCE_LENGTH among them.

    \b
    Example: diffgentor edit --backend flux_kontext_official --model_name PATH --input data.csv --seed 7
    """
    _check_backend(backend)
    _check_others(context.args)
    selection = ALL_ROWS if filter_rows is None else RowSelection.parse(filter_rows, "--filter_rows")
    variables = {
        "DG_FLUX_KONTEXT_MODEL": _model(model_name),
        "DG_FLUX_KONTEXT_DEVICE": device,
        "DG_MAX_ATTEMPTS": None if max_retries is None else str(_attempts(max_retries)),
        "DG_INPUT_CACHE_DIR": None if image_cache_dir is None else str(image_cache_dir.expanduser().resolve()),
    }
    run_table(
        source,
        output_dir,
        RowDefaults.read(num_inference_steps=num_inference_steps, guidance_scale=guidance_scale, seed=seed),
        RunOptions(
            overwrite=no_resume,
            selection=selection,
            results=output_csv,
            result_names={"output": "output_image"},
            variables={name: value for name, value in variables.items() if value is not None},
            gpus=num_gpus,
        ),
        ColumnNames(
            IMAGE_COLUMNS,
            PROMPT_COLUMNS if instruction_key is None else (instruction_key,),
            ColumnNames().output if output_name_column is None else (output_name_column,),
        ),
    )


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def t2i(context: typer.Context) -> None:
    """Not served here: images from text alone."""
    raise SettingsError(f"t2i: {THEIR_TOOL}")


@app.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True, "help_option_names": []})
def serve(context: typer.Context) -> None:
    """Not served here: an HTTP server in front of one model."""
    raise SettingsError(f"serve: {THEIR_TOOL}; a queue for edits is made of producer submit and worker run")


def main() -> None:
    """Entry point: every error that a person can mend ends in one line and its exit code."""
    try:
        app(prog_name="diffgentor")
    except Error as error:
        say(f"error: {error}")
        raise SystemExit(exit_code_of(error)) from error


def _check_backend(backend: str) -> None:
    if backend == BACKEND:
        return
    served = f"here is --backend {BACKEND} only"
    if backend in OTHERS:
        raise SettingsError(f"--backend {backend}: {served}; {THEIR_TOOL}")
    raise SettingsError(f"--backend {backend}: unknown; {served}")


def _check_others(words: Sequence[str]) -> None:
    """Say once which options have no use here, and refuse those that would change what is done."""
    names = list(_option_names(words))
    for name in names:
        if name in REFUSED:
            raise SettingsError(f"{name}: {REFUSED[name]}")
        if name not in UNUSED:
            raise SettingsError(f"{name}: no such option; see diffgentor edit --help")
    if names:
        say(f"not used by {BACKEND}: {', '.join(names)}")


def _option_names(words: Sequence[str]) -> Iterator[str]:
    remaining = iter(words)
    for word in remaining:
        name, equals, _ = word.partition("=")
        yield name
        if UNUSED.get(name) and not equals:
            next(remaining, None)


def _model(name: str) -> str:
    """A folder as an absolute path; what is none is a name on the Hugging Face hub."""
    path = Path(name).expanduser()
    if path.exists():
        return str(path.resolve())
    if name.count("/") == 1 and not name.startswith((".", "~", "/")):
        return name
    raise SettingsError(f"--model_name {name}: no such folder; give the model's folder or its Hugging Face name")


def _attempts(max_retries: int) -> int:
    if max_retries < 0:
        raise SettingsError(f"--max_retries {max_retries}: expected 0 or more")
    return max_retries + 1


if __name__ == "__main__":
    main()
