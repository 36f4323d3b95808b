"""Settings of the storage: lists, sizes and folders."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobs.errors import SettingsError
from jobs.settings import load_settings
from storage.settings import StorageSettings


def test_lists_sizes_and_folders_are_split(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_BUCKETS", "cats, dogs")
    monkeypatch.setenv("DG_FILE_ROOTS", f"{tmp_path}:/srv")
    monkeypatch.setenv("DG_MAX_INPUT_BYTES", "1.5MiB")

    settings = load_settings(StorageSettings)

    assert settings.buckets == ("cats", "dogs")
    assert settings.file_roots == (tmp_path, Path("/srv"))
    assert settings.max_input_bytes == 1_572_864


def test_a_size_that_is_none_is_one_line_that_names_the_variable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DG_MAX_INPUT_BYTES", "12 parsec")

    with pytest.raises(SettingsError, match=r"^DG_MAX_INPUT_BYTES='12 parsec': expected a number of bytes"):
        load_settings(StorageSettings)


def test_places_in_buckets_are_written_with_and_without_their_scheme() -> None:
    settings = load_settings(StorageSettings, buckets=("cats", "s3://dogs/in/", "birds/out", "*"))

    assert settings.buckets == ("cats", "dogs/in", "birds/out", "*")


@pytest.mark.parametrize("place", ["file:///srv", "https://pics.example.org", "s3://", "/in"])
def test_what_is_no_place_in_a_bucket_is_named(place: str) -> None:
    with pytest.raises(SettingsError, match=r"^DG_BUCKETS=.*: expected names of buckets, s3://bucket/prefix, or \*"):
        load_settings(StorageSettings, buckets=(place,))
