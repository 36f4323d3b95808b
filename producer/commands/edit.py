"""`producer edit`: one image, or a few, with variations."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import typer

from jobs.errors import SettingsError
from jobs.ledger import JobRecord
from jobs.schema import SUFFIX_OF_FORMAT, EditJob, EditParams, EditResult, JobState, parse_job
from producer.commands import options
from producer.commands.edit_output import read_local_output
from producer.commands.edit_remote import (
    check_remote_output,
    fetched,
    is_workers,
    refuse_local_loras,
    run_remotely,
    without_output,
)
from producer.embedded.local_service import local_service
from producer.embedded.private_redis import private_folder
from producer.errors import TableError
from producer.exit_codes import ExitCode
from producer.files import local_path
from producer.images import pillow, write_side_by_side
from producer.table.cells import CellProblem
from producer.table.images import parse_images
from producer.table.plan import RowDefaults
from producer.terminal import put, put_json_text, say
from producer.waiting import wait_for

MOST_EDITS = 1000
SEED = EditParams.model_fields["seed"]
NUMBER = re.compile(r"-?\d+")
SEEDS = re.compile(r"(\d+)\.\.(\d+)")


@dataclass(frozen=True)
class Edit:
    """One edit of the command line: its input images as URIs, its seed, and the URI of its output.

    An output that `is_fetched` is the workers' until it is fetched to that place here.
    """

    images: tuple[str, ...]
    seed: int | None
    output: str | None
    is_fetched: bool = False

    def job(self, prompt: str, defaults: RowDefaults) -> EditJob:
        params = {**defaults.params().model_dump(), "seed": self.seed}
        job = parse_job({"image": list(self.images), "prompt": prompt, "output": self.output, "params": params})
        return without_output(job) if self.is_fetched else job


@options.takes_params
def edit(
    images: Annotated[
        list[str], options.argument("IMAGE...", help="Paths or URIs; inputs of one edit are separated by commas.")
    ],
    prompt: Annotated[str, options.argument("PROMPT", help="What to change in the image.")],
    output: Annotated[
        str | None,
        options.option(
            "-o", "--output", help="File, or a folder (ends in /); with --remote also a URI. [default: X-edited.png]"
        ),
    ] = None,
    seed: Annotated[
        str | None,
        options.option("--seed", help=f"{SEED.description} 1..4: four variations. [default: random, reported]"),
    ] = None,
    compare: Annotated[
        bool, options.option("--compare", help="Write input and outputs side by side too. [default: off]")
    ] = False,
    show: Annotated[bool, options.option("--open", help="Open what was made. [default: off]")] = False,
    remote: Annotated[
        bool,
        options.option("--remote", help="Let the workers on DG_BROKER_URL do it. [default: off]"),
    ] = False,
    params: options.Params = None,
    broker_url: options.BrokerUrl = None,
    as_json: options.AsJson = False,
) -> None:
    """Edit an image, or several, and print where the results are.

    By default this machine does it, as in `producer run`. With --remote the running workers do it; a local image
    travels inside the job, and the output stays where they put it, or is fetched to -o.

    \b
    Example: producer edit cat.png "make it snow" -o snow.png
    Example: producer edit cat.png "make it snow" --seed 1..4 --compare --open
    """
    if remote and (compare or show) and is_workers(output):
        raise typer.BadParameter("--compare and --open show files here: with --remote name one by -o, or a folder")
    defaults = RowDefaults.read(
        **params or {},
    )
    if remote:
        refuse_local_loras(defaults.params())
    edits = plan_edits(images, _seeds(seed), output, str(defaults.given.get("output_format", "png")), remote)
    jobs = [one.job(prompt, defaults) for one in edits]
    if compare:
        pillow()  # now rather than after the edits
    run = run_remotely(broker_url) if remote else _run_here
    results = [_told(_here(record.result, one), as_json) for record, one in zip(run(jobs), edits, strict=True)]
    made = list(_compare(edits, results)) if compare else _local_outputs(results)
    for path in made:
        put(str(path)) if compare and not as_json else None
        typer.launch(str(path)) if show else None
    is_complete = all(result.state is JobState.SUCCEEDED for result in results)
    raise typer.Exit(ExitCode.OK if is_complete else ExitCode.INCOMPLETE)


def _seeds(text: str | None) -> list[int | None]:
    """`7`, `1..4` or `1,5,9` as numbers; one None when there is no seed."""
    if text is None:
        return [None]
    if (bounds := SEEDS.fullmatch(text.strip())) is not None:
        first, last = int(bounds[1]), int(bounds[2])
        if first <= last < first + MOST_EDITS:
            return list(range(first, last + 1))
    elif all(NUMBER.fullmatch(part.strip()) for part in text.split(",")):
        return [int(part) for part in text.split(",")]
    raise SettingsError(f"--seed {text}: expected a number such as 7, or variations such as 1..4 or 1,5,9")


def plan_edits(
    images: Sequence[str], seeds: Sequence[int | None], output: str | None, chosen_format: str, remote: bool
) -> list[Edit]:
    """Each image with each seed, and an output for each that no other has.

    Raises:
        TableError: an image is not there, or the output cannot be meant.
    """
    several = len(images) * len(seeds) > 1
    if len(images) * len(seeds) > MOST_EDITS:
        raise SettingsError(f"{len(images) * len(seeds):,} edits are more than {MOST_EDITS:,}: write a table")
    if remote and is_workers(output):
        check_remote_output(output, several)
        return [Edit(tuple(_images(image)), seed, output) for image in images for seed in seeds]
    suffix = SUFFIX_OF_FORMAT.get(chosen_format, ".png")
    place = read_local_output(output)
    if len(images) > 1 and place.has_suffix:
        raise TableError(f"-o {output}: one file for several images; name a folder")
    taken: set[Path] = set()
    edits = []
    for image in images:
        for seed in seeds:
            variation = "" if len(seeds) == 1 else f"-{seed}"
            if place.is_folder or (several and not place.has_suffix):
                target = _free(place.path / f"{_stem(image)}-edited{variation}{suffix}", taken)
            else:
                target = _free(place.path.with_stem(place.path.stem + variation), taken)
            edits.append(Edit(tuple(_images(image)), seed, target, is_fetched=remote))
    return edits


def _free(path: Path, taken: set[Path]) -> str:
    """This path, or one with a number when an edit before has it, as a `file://` URI."""
    wanted, number = path, 2
    while path in taken:
        path, number = wanted.with_stem(f"{wanted.stem}-{number}"), number + 1
    taken.add(path)
    return path.as_uri()


def _run_here(jobs: list[EditJob]) -> Iterator[JobRecord]:
    say("starting a private Redis and a worker")
    with private_folder() as folder, local_service(folder.as_uri(), folder / "worker.log") as service:
        for _ in service.client.submit_many(jobs):
            pass
        for job in jobs:
            yield wait_for(service.client, job.id, service.check)


def _here(result: EditResult, one: Edit) -> EditResult:
    path = local_path(one.output) if one.is_fetched and one.output else None
    return result if path is None else fetched(result, path)


def _images(image: str) -> list[str]:
    try:
        return parse_images(image)
    except CellProblem as problem:
        raise TableError(f"{problem.value}: {problem.remedy}") from problem


def _stem(image: str) -> str:
    return "image" if image.startswith("data:") else Path(image.split(",")[0]).stem or "image"


def _told(result: EditResult, as_json: bool) -> EditResult:
    """Say how an edit ended."""
    if result.error is not None:
        say(f"{result.error.code}: {result.error.message}")
    if as_json:
        put_json_text(result.model_dump_json())
    elif result.state is JobState.SUCCEEDED and result.output is not None:
        say(f"seed {result.seed}")
        put(str(local_path(result.output) or result.output))
    return result


def _local_outputs(results: Sequence[EditResult]) -> list[Path]:
    outputs = [local_path(result.output) for result in results if result.output and result.error is None]
    return [path for path in outputs if path is not None]


def _compare(edits: Sequence[Edit], results: Sequence[EditResult]) -> Iterator[Path]:
    """Write one image for each input with all its outputs beside it, as far as they are local files."""
    for images in dict.fromkeys(one.images for one in edits):
        own = [result for one, result in zip(edits, results, strict=True) if one.images == images]
        inputs, outputs = [path for uri in images if (path := local_path(uri)) is not None], _local_outputs(own)
        if outputs:
            first = outputs[0]
            target = first.with_name(f"{first.stem}-compare.png")
            write_side_by_side([*inputs, *outputs], target)
            yield target
