"""Names of pictures: what every store, file system and viewer can have, and what is refused when a job is accepted."""

from __future__ import annotations

import pytest

from jobs.errors import RejectJob
from jobs.names import check_new_name
from jobs.schema import parse_job
from producer.table.cells import CellProblem, locate_output

DEEP = "/".join(["a"] * 64)
LONG = "/".join(["x" * 250] * 4)

REFUSED = [
    ("a/../b.png", "without '..'"),
    ("../b.png", "without '..'"),
    ("a/./b.png", "without '..'"),
    ("a\nb.png", "control characters"),
    ("a\0b.png", "control characters"),
    ("a\x1b[31mb.png", "control characters"),
    ("a\x85b.png", "control characters"),
    ("a\u2028b.png", "control characters"),
    ("a\ud800b.png", "half of a surrogate pair"),
    ("a\u202egnp.exe.png", "direction of writing"),
    ("a\u2066b.png", "direction of writing"),
    ("sub\\b.png", "backslash"),
    ("..\\b.png", "backslash"),
    ("C:\\x.png", "drive"),
    ("c:x.png", "drive"),
    ("C:/x.png", "drive"),
    ("a/", "end in the name of a file"),
    ("/".join(["a"] * 3000) + "/b.png", "longer than 1,024 bytes"),
    (f"{DEEP}/b.png", "more than 64 folders deep"),
    ("é" * 200 + ".png", "a part of more than 255 bytes"),
    (f"{LONG}/{LONG}.png", "longer than 1,024 bytes"),
]

TAKEN = [
    "b.png",
    "sub/first.png",
    "with blanks (1).png",
    "50%.png",
    "a#b?c.png",
    "a..b.png",
    ".hidden.png",
    "café.png",
    "cafe\u0301.png",
    "猫.png",
    "👨\u200d👩\u200d👧.png",
    "Screenshot at 9.41.00\u202fPM.png",
    f"{DEEP[:-4]}/b.png",
    f"{LONG}.png",
    "x" * 251 + ".png",
]


@pytest.mark.parametrize(("name", "said"), REFUSED)
def test_a_name_that_could_do_harm_is_refused_alike_in_jobs_and_in_tables(name: str, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        check_new_name(name)
    with pytest.raises(RejectJob, match=f"output: .*{said}"):
        parse_job({"image": "s3://b/k", "prompt": "snow", "output": f"s3://bucket/{name}"})
    with pytest.raises(CellProblem, match=said):
        locate_output(name, 0, "png", "s3://bucket", "s3://bucket")


@pytest.mark.parametrize("name", TAKEN)
def test_every_other_name_is_taken(name: str) -> None:
    for root in ("s3://bucket", "file:///pictures"):
        output = locate_output(name, 0, "png", root, root)

        assert parse_job({"image": "s3://b/k", "prompt": "snow", "output": output}).output == output


@pytest.mark.parametrize("path", ["a/%2e%2e/b.png", "a%00b.png", "a%5Cb.png", "%E2%80%AEb.png", "%FF.png"])
def test_paths_are_looked_at_as_the_store_will_see_them(path: str) -> None:
    with pytest.raises(RejectJob, match="output: "):
        parse_job({"image": "s3://b/k", "prompt": "snow", "output": f"file:///out/{path}"})


def test_a_path_of_a_drive_is_no_path_of_a_worker() -> None:
    with pytest.raises(RejectJob, match="output: should not name a drive"):
        parse_job({"image": "s3://b/k", "prompt": "snow", "output": "file:///C:/pictures/b.png"})


@pytest.mark.parametrize("key", ["open/../secret.png", "a\nb.png", "k" * 1025])
def test_keys_of_inputs_stay_where_they_are(key: str) -> None:
    with pytest.raises(RejectJob, match="image: "):
        parse_job({"image": f"s3://bucket/{key}", "prompt": "snow"})


def test_keys_of_inputs_may_have_what_others_put_there() -> None:
    parse_job({"image": r"s3://bucket/C:\pictures\cat.png", "prompt": "snow"})
