"""What comes from outside, as logs, errors and terminals show it."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.errors import EditFailure, Error, ErrorCode, RejectJob
from jobs.schema import parse_job
from jobs.shown import LONGEST_LINE, escape_controls, hide_in_url, hide_secrets, one_line
from producer.terminal import put, put_json, say
from tests.waiting import stretched
from worker.logs import OneLineFormatter


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("see redis://user:secret@host:6379/0 now", "see redis://host:6379/0 now"),
        ("redis://:sec@ret@host/0", "redis://host/0"),
        ("redis://:sec/ret@host/0", "redis://host/0"),
        ("rediss://host/0?password=secret&x=1", "rediss://host/0?..."),
        ("sentinel://u:secret@h1:1;sentinel://u:secret@h2/0?master=m", "sentinel://h1:1;sentinel://h2/0?..."),
        ("(https://me:secret@host:8443/cat@2x.png?X-Amz-Signature=secret#top)", "(https://host:8443/cat@2x.png?..."),
        ("https://host/cat.png#secret", "https://host/cat.png?..."),
        ("HTTPS://secret@host", "HTTPS://host"),
        ("https://me:secret@[::1]:80/a", "https://[::1]:80/a"),
        ("https://me:secret@[::1/a", "https://[::1/a"),
        ("https://host/a?...: HTTP 404", "https://host/a?...: HTTP 404"),
        ("s3://cats/a?b#c@d.png and file:///srv/a?b.png", "s3://cats/a?b#c@d.png and file:///srv/a?b.png"),
        ("signed with whsec_c2VjcmV0c2VjcmV0", "signed with whsec_***"),
        ("https:/me:secret@host no URL", "https:/***@host no URL"),
    ],
)
def test_no_secret_of_a_url_is_shown(text: str, shown: str) -> None:
    assert hide_secrets(text) == shown
    assert hide_secrets(shown) == shown


@given(st.text(), st.integers(10, 60))
def test_any_text_becomes_one_line_of_bounded_length(text: str, longest: int) -> None:
    shown = one_line(text, longest)

    assert len(shown) <= longest
    assert len(f"{shown}.".splitlines()) == 1
    assert escape_controls(shown) == shown
    shown.encode()


def test_what_is_cut_and_escaped_is_said() -> None:
    assert one_line("a\x1b[31m\nb\u202egnp\ud800") == r"a\x1b[31m\nb\u202egnp\ud800"
    assert one_line("x" * 100, 10) == "xxxxxxx..."
    assert one_line("👩\u200d🚀 ça va\xa0!") == "👩\u200d🚀 ça va\xa0!"


def test_hiding_takes_no_longer_for_text_that_was_made_for_it() -> None:
    for text in (
        "a" * 10**6,
        "a:" * 10**6,
        "://" * 10**6,
        "https://" + "@" * 10**6,
        "a:b" * 10**6,
        ";sentinel://" * 10**5,
    ):
        started = time.monotonic()
        hide_secrets(text)
        hide_in_url(text)
        assert time.monotonic() - started < stretched(5)


@pytest.mark.parametrize("kind", [Error, lambda text: EditFailure(ErrorCode.INTERNAL, text)])
def test_every_error_of_ours_is_one_line(kind: type[Error]) -> None:
    error = kind("first\nWARNING forged \x1b[2J" + " x" * 1_000_000)

    assert str(error).startswith(r"first\nWARNING forged \x1b[2J")
    assert len(str(error)) <= LONGEST_LINE


def test_an_error_of_a_job_carries_no_secret_of_a_url() -> None:
    for raw in (
        {"image": "ftp://me:secret@host/a.png", "prompt": "x"},
        {"image": "https:/me:secret@host/a.png", "prompt": "x"},
        {"image": "s3://b/a.png", "prompt": "x", "callback": {"url": "ftp://me:secret@host/?k=secret"}},
        {"image": "s3://b/a.png", "prompt": "x", "batch": "https://h/?k=secret"},
        {"image": "s3://b/a.png", "prompt": "x", "evil\nINFO job_succeeded job=x\x1b[2J": 1},
    ):
        with pytest.raises(RejectJob) as caught:
            parse_job(raw)
        assert "secret" not in caught.value.message
        assert escape_controls(caught.value.message) == caught.value.message


def test_no_text_makes_a_second_line_of_the_log() -> None:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(OneLineFormatter("%(levelname)s %(message)s"))
    log = logging.Logger("test")
    log.addHandler(handler)

    log.warning("job=%s", "a\nERROR forged \x1b[2J https://u:secret@h/?sig=secret")
    try:
        raise ValueError("b\nERROR forged secret://u:secret@h")
    except ValueError:
        log.exception("failed")

    lines = stream.getvalue().splitlines()
    assert lines[0] == r"WARNING job=a\nERROR forged \x1b[2J https://h/?..."
    assert lines[1] == "ERROR failed"
    assert all(line.startswith("    ") for line in lines[2:])
    assert "secret@" not in stream.getvalue()


def test_a_terminal_gets_no_escape_sequences(capsys: pytest.CaptureFixture[str]) -> None:
    say("two\nlines \x1b[2J")
    put("a\x9b2J\rb")
    put_json(error="\x1b[2J\x9b\u202e é")

    shown = capsys.readouterr()
    assert shown.err == "two\nlines \\x1b[2J\n"
    assert shown.out.splitlines()[0] == r"a\x9b2J\rb"
    assert escape_controls(shown.out, "\n") == shown.out
    assert json.loads(shown.out.splitlines()[1]) == {"error": "\x1b[2J\x9b\u202e é"}
