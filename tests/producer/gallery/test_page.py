"""The gallery as a file: what stands in it, what lies beside it, and what it never does."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from producer.errors import SetupError
from producer.gallery import shown_images, write_gallery
from producer.report import Ending, ReportRow
from tests.producer.gallery.conftest import HOSTILE, edit_rows
from tests.servers.http import Answer, HttpServer
from tests.servers.s3 import S3Server


def page_data(path: Path | str) -> dict[str, Any]:
    text = path.read_text() if isinstance(path, Path) else path
    (data,) = re.findall(r'<script type="application/json" id="rows">(.*?)</script>', text, re.DOTALL)
    return dict(json.loads(data))


def test_rows_stand_in_the_page_with_small_images_beside_it(images: Path) -> None:
    write_gallery(images / "out/gallery.html", "spring", edit_rows(images), batch="spring")

    data = page_data(images / "out/gallery.html")
    done, forbidden, *_ = data["rows"]
    assert [row["state"] for row in data["rows"]] == [
        *("succeeded", "failed", "succeeded", "cancelled", "queued", "refused")
    ]
    assert done["before"][0]["large"] == "../in/cat.png"
    assert done["after"]["large"] == "%C3%A4%20b.png"
    with Image.open(images / "out" / done["after"]["small"]) as small:
        assert small.size == (400, 300)
    assert done["seed"] == str(2**64 - 1), "JavaScript would round the number"
    assert (forbidden["before"], forbidden["after"]) == ([], None)
    assert forbidden["retry"] == "producer retry two"
    assert {path.name for path in (images / "out").iterdir()} == {"ä b.png", "gallery.html", "gallery-images"}


def test_failures_are_counted_with_the_command_that_takes_them_up(images: Path) -> None:
    write_gallery(images / "a.html", "spring", edit_rows(images, 12), batch="spring")
    write_gallery(images / "b.html", "data.csv", edit_rows(images, 12))

    failures = page_data(images / "a.html")["failures"]
    assert [(failure["code"], failure["count"]) for failure in failures] == [("input_forbidden", 2), ("cancelled", 2)]
    assert failures[0]["retry"] == "producer retry spring --code input_forbidden"
    assert page_data(images / "b.html")["failures"][0]["retry"] == "the same command again"


def test_no_text_can_leave_its_place(images: Path) -> None:
    write_gallery(images / "gallery.html", HOSTILE, edit_rows(images))

    page = (images / "gallery.html").read_text()
    assert page.count("<script") == 2, "the data and the page's own"
    assert "<img" not in page
    assert page_data(page)["title"] == page_data(page)["rows"][2]["prompt"] == HOSTILE


def test_small_images_are_made_once_and_again_when_the_image_changes(images: Path) -> None:
    write_gallery(images / "gallery.html", "spring", edit_rows(images))
    made = list((images / "gallery-images").iterdir())
    (images / "gallery.html").unlink()
    Image.new("RGB", (100, 100), "green").save(images / "in/cat.png")

    write_gallery(images / "gallery.html", "spring", edit_rows(images))

    sizes = set()
    for path in made:
        with Image.open(path) as small:
            sizes.add(small.size)
    assert len(made) == 2
    assert sizes == {(100, 100), (400, 300)}


def test_what_is_no_image_is_named_and_does_no_harm(tmp_path: Path) -> None:
    (tmp_path / "cat.png").write_bytes(b"cat")
    done = Ending("succeeded", (tmp_path / "gone.png").as_uri(), 7, 1, 0.5, "", "a")

    write_gallery(
        tmp_path / "gallery.html", "spring", [ReportRow({}, ((tmp_path / "cat.png").as_uri(),), "snow", done)]
    )

    (row,) = page_data(tmp_path / "gallery.html")["rows"]
    assert (row["before"], row["after"], row["inputs"], row["output"]) == ([], None, ["cat.png"], "gone.png")
    assert [path.name for path in tmp_path.iterdir() if path.is_dir()] == []


def test_each_input_has_its_own_link(images: Path) -> None:
    web, cat = "https://example.org/a.png", (images / "in/cat.png").as_uri()
    names = (web, "s3://bucket/a.png", (images / "gone.png").as_uri(), cat, "data:image/png;base64,Y2F0")

    write_gallery(images / "gallery.html", "spring", [ReportRow({}, names, "snow", Ending("queued"))])

    (row,) = page_data(images / "gallery.html")["rows"]
    assert row["links"] == [web, None, None, "in/cat.png", None]
    assert [shown["link"] for shown in row["before"]] == ["in/cat.png"], "what cannot be shown does not move the rest"


def test_without_pillow_whole_images_are_linked(
    images: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def missing() -> None:
        raise SetupError("no Pillow")

    monkeypatch.setattr(shown_images, "pillow", missing)

    write_gallery(images / "gallery.html", "spring", edit_rows(images))

    done = page_data(images / "gallery.html")["rows"][0]
    assert done["before"][0]["small"] == done["before"][0]["large"] == "in/cat.png"
    assert "small ones need Pillow" in capsys.readouterr().err


def test_a_contact_sheet_shows_pairs(images: Path) -> None:
    write_gallery(images / "gallery.html", "spring", edit_rows(images), sheet=images / "sheet.png")

    with Image.open(images / "sheet.png") as sheet:
        assert sheet.size == (2 * (2 * 200 + 4 + 12) + 12, 200 + 2 * 12)
        red, _, blue = (sheet.getpixel((left, 112)) for left in (112, 214, 316))
    assert red[0] > 200 > red[2]
    assert blue[2] > 200 > blue[0]


def test_a_gallery_in_a_bucket_shows_what_lies_in_buckets(
    images: Path, s3_server: S3Server, s3_bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in s3_server.environment.items():
        monkeypatch.setenv(name, value)
    s3 = s3_server.client()
    s3.upload_file(str(images / "out/ä b.png"), s3_bucket, "edits/1.png")
    done = Ending("succeeded", f"s3://{s3_bucket}/edits/1.png", 7, 1, 0.5, "", "a")
    rows = [ReportRow({}, ((images / "in/cat.png").as_uri(), "s3://no-such-bucket/a.png"), "snow", done)]

    write_gallery(f"s3://{s3_bucket}/pages/spring/gallery.html", "spring", rows)

    answer = s3.get_object(Bucket=s3_bucket, Key="pages/spring/gallery.html")
    assert answer["ContentType"] == "text/html"
    (row,) = page_data(answer["Body"].read().decode())["rows"]
    assert row["after"]["large"] == "../../edits/1.png"
    assert row["before"][0]["link"] is None, "a path of this machine means nothing there"
    small = s3.get_object(Bucket=s3_bucket, Key=f"pages/spring/{row['before'][0]['small']}")
    assert small["Body"].read().startswith(b"\xff\xd8")


def test_inputs_on_the_web_are_linked_and_shown_only_when_that_is_wanted(
    images: Path, http_server: HttpServer, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("DG_PRIVATE_HOSTS", "127.0.0.1")
    url = http_server.answer("/cat.png", Answer(body=(images / "in/cat.png").read_bytes()))
    gone = http_server.url("/gone.png")
    rows = [ReportRow({}, (uri,), "snow", Ending("queued")) for uri in (url, url, gone, "http://10.0.0.1/a.png")]

    write_gallery(images / "a.html", "spring", rows)
    write_gallery(images / "b.html", "spring", rows, fetch=True)

    linked = page_data(images / "a.html")["rows"]
    assert [row["before"] for row in linked] == [[]] * 4
    assert [row["links"] for row in linked] == [[url], [url], [gone], ["http://10.0.0.1/a.png"]]
    shown = [row["before"] for row in page_data(images / "b.html")["rows"]]
    assert (shown[0], shown[2], shown[3]) == (shown[1], [], [])
    assert shown[0][0]["link"] == url
    assert shown[0][0]["small"] == shown[0][0]["large"], "the page itself loads nothing from there"
    assert 1 <= len(http_server.requests("/cat.png")) <= 2
    assert "not all images of 10.0.0.1 are shown" in capsys.readouterr().err
