"""Names of columns and what each means, in our words and in those of other tools."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from difflib import get_close_matches

from producer.errors import TableError
from producer.table.plan import NAME_COLUMNS, PARAM_COLUMNS

IMAGE_COLUMNS = ("image", "image_url", "image_uri", "input_image", "input_images")
PROMPT_COLUMNS = ("prompt", "instruction")
OUTPUT_COLUMNS = ("output",)
JOB_COLUMNS = ("id", "index", "output", "callback_url", "callback_events", *NAME_COLUMNS, *PARAM_COLUMNS)

OTHER_NAMES = {
    "image": (
        *("file_name", "source_img", "source_image", "original_image", "src_img", "image_path", "image_file"),
        *("images", "img", "picture"),
    ),
    "prompt": ("edit_prompt", "edit_instruction", "instruction_en", "edit", "text", "caption"),
    "guidance_scale": ("guidance",),
    "num_inference_steps": ("steps", "num_steps", "inference_steps"),
    "quality": ("output_quality", "jpeg_quality"),
    "output_format": ("format",),
    "callback_url": ("webhook", "webhook_url"),
}
"""Names that other tools and data sets use for what we have, by our name; used with a note."""

NOT_OURS = {
    "cfg": "guidance_scale",
    "cfg_scale": "guidance_scale",
    "true_cfg_scale": "guidance_scale",
    "file": "image",
    "filename": "image or output",
    "path": "image",
    "url": "image_url",
    "output_file": "output",
    "output_name": "output",
    "output_path": "output",
    "out": "output",
    "noise_seed": "seed",
    "w": "width",
    "h": "height",
    "negative_prompt": "",
    "strength": "",
    "denoise": "",
    "sampler": "",
    "sampler_name": "",
    "scheduler": "",
    "num_outputs": "",
    "num_images": "",
    "num_images_per_prompt": "",
    "size": "width and height, or aspect_ratio",
    "resolution": "width and height, or aspect_ratio",
    "megapixels": "",
    "lora": "",
    "lora_scale": "",
    "prompt_upsampling": "",
    "safety_tolerance": "",
    "disable_safety_checker": "",
    "enable_safety_checker": "",
    "go_fast": "",
    "raw": "",
}
"""Names of other tools that may mean something else, or that have no counterpart, with what to look at."""

MORE_IMAGES = re.compile(r"(?:input_|reference_)?image_?([2-9])")
"""A further picture of the row in a column of its own, as `input_image_2`."""


MOST_LOOKED_AT = 200
"""Columns without a meaning to us that are compared with our names."""


@dataclass(frozen=True)
class ColumnNames:
    """Names under which a table may have its columns; the first that it has counts."""

    image: tuple[str, ...] = IMAGE_COLUMNS
    prompt: tuple[str, ...] = PROMPT_COLUMNS
    output: tuple[str, ...] = OUTPUT_COLUMNS

    @classmethod
    def chosen(cls, image: str | None, prompt: str | None, output: str | None) -> ColumnNames:
        """The names that a command line gives; None leaves the usual ones."""
        given = {"image": image, "prompt": prompt, "output": output}
        return cls(**{role: (name,) for role, name in given.items() if name is not None})


class Columns:
    """Meaning of each column of a table.

    Args:
        names: the columns that the table has.
        accepted: the names under which image, prompt and output are looked for.
    Attributes:
        of_role: the table's column for each of our names that it has: `image`, `prompt` and `JOB_COLUMNS`.
        more_images: columns with further pictures of the row.
        kept: columns that have no meaning to us and come back in the results.
        notes: what people should know about columns, by column.
    Raises:
        TableError: there is no image or no prompt column, or none of a name that was asked for.
    """

    def __init__(self, names: tuple[str, ...], table_name: str, accepted: ColumnNames | None = None) -> None:
        accepted = accepted or ColumnNames()
        self._names = {simple_name(name): name for name in reversed(names)} | {name: name for name in names}
        self.of_role: dict[str, str] = {}
        self.notes: dict[str, str] = {}
        self._find("image", accepted.image, len(accepted.image) > 1)
        self._find("prompt", accepted.prompt, len(accepted.prompt) > 1)
        for role in JOB_COLUMNS:
            self._find(role, accepted.output if role == "output" else (role,), True)
        self._require("image", "an image", accepted.image, names, table_name)
        self._require("prompt", "a prompt", accepted.prompt, names, table_name)
        if accepted.output != OUTPUT_COLUMNS:
            self._require("output", "an output", accepted.output, names, table_name)
        used = {*self.of_role.values()}
        self.more_images = tuple(name for name in names if name not in used and _is_more_images(name))
        self.kept = tuple(name for name in names if name not in used and name not in self.more_images)
        looked_at = self.kept[:MOST_LOOKED_AT]
        self.notes.update((name, note) for name in looked_at if (note := self._advice(name)))

    @property
    def image(self) -> str:
        return self.of_role["image"]

    @property
    def prompt(self) -> str:
        return self.of_role["prompt"]

    def column(self, role: str) -> str:
        """The table's column for one of our names, or that name where it has none."""
        return self.of_role.get(role, role)

    def meaning_of_columns(self) -> dict[str, str]:
        """Our name for each column that is used."""
        more = dict.fromkeys(self.more_images, "image")
        return {column: role for role, column in self.of_role.items()} | more

    def source_of(self, location: tuple[int | str, ...]) -> str:
        """The column that a field of the job, named as pydantic does, was filled from."""
        if not location:
            return self.column("output")  # the whole job is wrong when output and output_format disagree
        is_inner = location[0] in ("params", "callback") and len(location) > 1
        role = str(location[1] if is_inner else location[0])
        return self.column(
            {"callback": "callback_url", "url": "callback_url", "events": "callback_events"}.get(role, role)
        )

    def _find(self, role: str, accepted: Iterable[str], is_usual: bool) -> None:
        for name in accepted:
            column = self._names.get(name) or self._names.get(simple_name(name))
            if column is not None and column not in self.of_role.values():
                self.of_role[role] = column
                return
        for name in OTHER_NAMES.get(role, ()) if is_usual else ():
            if (column := self._names.get(name)) is not None and column not in self.of_role.values():
                self.of_role[role] = column
                self.notes[column] = f"used as {role}"
                return

    def _require(
        self, role: str, what: str, accepted: tuple[str, ...], names: tuple[str, ...], table_name: str
    ) -> None:
        if role in self.of_role:
            return
        there = ", ".join(names[:20]) or "none"
        raise TableError(
            f"{table_name}: needs {what} column, named {' or '.join(accepted)}; its columns are: {there}; "
            f"if it has another name, say --{role}-column NAME"
        )

    def _advice(self, column: str) -> str:
        """What to say of a column that is not used; empty when it only looks like the user's own."""
        name = simple_name(column)
        for role, others in (*OTHER_NAMES.items(), *((role, (role,)) for role in JOB_COLUMNS)):
            if role in self.of_role and (name in others or (role == "image" and name in IMAGE_COLUMNS)):
                return f"not used; {self.of_role[role]} is" if name not in _OF_THE_SET else ""
        if name in NOT_OURS:
            return (
                f"not used; did you mean {NOT_OURS[name]}?"
                if NOT_OURS[name]
                else "not used; Kontext has no such option"
            )
        close = get_close_matches(name, _OURS, n=1, cutoff=0.8)
        return f"not used; did you mean {close[0]}?" if close and close[0] not in self.of_role else ""


_OURS = (*IMAGE_COLUMNS, *PROMPT_COLUMNS, *JOB_COLUMNS)
_KNOWN = frozenset({*_OURS, *(name for names in OTHER_NAMES.values() for name in names), *NOT_OURS})
_OF_THE_SET = frozenset({"text", "caption", "edit"})
"""Names that a table may well have for itself, beside those that we use."""


def simple_name(name: str) -> str:
    """A column's name without case, blanks and quotes: `"Image URL "` and `imageUrl` are `image_url`."""
    name = unicodedata.normalize("NFKC", name).strip(" \t\r\n\"'`\u201c\u201d\u2018\u2019\ufeff")
    name = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\s._-]+", "_", name).lower()


def count_known(names: tuple[str, ...]) -> int:
    """How many of these names of columns mean something to us or to a tool that we know."""
    return sum(simple_name(name) in _KNOWN for name in names)


def _is_more_images(name: str) -> bool:
    return MORE_IMAGES.fullmatch(simple_name(name)) is not None
