"""`data:` URIs carry the picture in the job."""

from __future__ import annotations

import base64

import pytest

from jobs.errors import ErrorCode, RejectJob
from jobs.settings import load_settings
from storage import Storage
from storage.settings import StorageSettings

PICTURE = bytes(range(256))
BASE64 = base64.b64encode(PICTURE).decode()


def read(uri: str, max_input_bytes: int = 256) -> bytes:
    return Storage(load_settings(StorageSettings, max_input_bytes=max_input_bytes)).read(uri)


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{BASE64}",
        f"DATA:;BASE64,{BASE64}",
        f"data:image/png;charset=x;base64,{BASE64.rstrip('=')}",
        "data:image/png;base64," + "\r\n ".join(BASE64[start : start + 76] for start in range(0, len(BASE64), 76)),
        "data:image/png;base64," + "".join(f"%{ord(letter):02X}" for letter in BASE64),
        "data:," + "".join(f"%{byte:02x}" for byte in PICTURE),
    ],
    ids=["base64", "capitals", "no padding", "line breaks", "percent-encoded base64", "percent-encoding"],
)
def test_every_spelling_of_the_same_bytes_is_read(uri: str) -> None:
    assert read(uri) == PICTURE


@pytest.mark.parametrize(
    "uri",
    [
        f"data:image/png;base64,{BASE64}",
        "data:," + "x" * 256,
        "data:," + "%41" * 256,
        "data:;base64," + "%41" * 10_000,
        "data:," + "x" * 10_000,
    ],
)
def test_more_than_the_limit_is_refused(uri: str) -> None:
    with pytest.raises(RejectJob, match="but DG_MAX_INPUT_BYTES is 255; send a smaller file or raise it") as error:
        read(uri, max_input_bytes=255)

    assert error.value.code is ErrorCode.INPUT_TOO_LARGE


@pytest.mark.parametrize(
    ("uri", "said"),
    [
        ("data:image/png;base64", "has no comma; expected data:image/png;base64,..."),
        ("data:image/png;base64,not*base64", "is not base64"),
        ("data:image/png;base64,AAAAA", "is not base64"),  # no number of bytes has 5 digits
    ],
)
def test_what_cannot_be_decoded_is_refused(uri: str, said: str) -> None:
    with pytest.raises(RejectJob) as error:
        read(uri)

    assert said in str(error.value)
    assert error.value.code is ErrorCode.INPUT_NOT_AN_IMAGE


def test_an_error_shows_the_beginning_of_the_data_only() -> None:
    with pytest.raises(RejectJob) as error:
        read(f"data:image/png;base64,{'*' * 300}")

    assert "data:image/png;base64,**********... (322 characters)" in str(error.value)
