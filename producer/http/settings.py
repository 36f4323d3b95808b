"""The variables of the HTTP door."""

from __future__ import annotations

from functools import cached_property
from ipaddress import ip_address
from pathlib import Path
from urllib.parse import unquote, urlsplit

from pydantic import Field, field_validator

from jobs.errors import SettingsError
from jobs.settings import Names
from producer.http.keys import ApiKeys
from storage import Storage
from storage.settings import StorageSettings


class HttpSettings(StorageSettings):
    """What `producer serve` reads; `DG_API_KEYS` holds no keys, but their hashes."""

    http_host: str = Field("127.0.0.1", description="address that the door is open on")
    http_port: int = Field(8000, ge=0, le=65535, description="its port; 0: any free one")
    http_url: str = Field("", description="address of the door as callers see it; default: as they ask for it")
    http_origins: Names = Field(
        (), description="origins of other web pages that may call it, such as https://a.example"
    )
    http_buckets: Names = Field((), description="bucket, or bucket/prefix, that callers may name in s3:// themselves")
    api_keys: str = Field("", repr=False, description="tenant:sha256[:images a minute], separated by blanks")
    upload_uri: str = Field("", description="where uploads go and workers read; default: uploads below DG_OUTPUT_URI")

    @field_validator("http_url")
    @classmethod
    def _http_url_is_an_address(cls, value: str) -> str:
        if value and not (value.startswith(("https://", "http://")) and urlsplit(value).netloc):
            raise ValueError("expected https://host, perhaps with a path")
        return value.rstrip("/")

    @field_validator("http_buckets")
    @classmethod
    def _places_of_callers(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return cls._places_in_buckets(value)

    @field_validator("api_keys")
    @classmethod
    def _api_keys_have_their_form(cls, value: str) -> str:
        ApiKeys.parse(value)
        return value

    @field_validator("upload_uri")
    @classmethod
    def _upload_uri_is_a_folder_uri(cls, value: str) -> str:
        if value and not value.startswith(("file:///", "s3://")):
            raise ValueError("expected s3://bucket/prefix or file:///absolute/folder")
        return value.rstrip("/")

    @property
    def uploads(self) -> str:
        """URI of the folder for uploads."""
        return self.upload_uri or f"{self.output_uri}/uploads"

    @cached_property
    def keys(self) -> ApiKeys:
        return ApiKeys.parse(self.api_keys)

    def check_open(self) -> None:
        """Refuse to be open to others without keys.

        Raises:
            SettingsError: the host is not this machine's loopback and there are no keys.
        """
        if not self.keys and not is_loopback(self.http_host):
            raise SettingsError(
                f"--host {self.http_host}: others could reach it, so it needs keys in DG_API_KEYS; "
                "make one with: producer serve --new-key NAME"
            )

    def open_storage(self, private_hosts: tuple[str, ...] = ()) -> Storage:
        """Storage by the rules of the door: uploads, outputs and `DG_HTTP_BUCKETS`; of the web public hosts alone."""
        places = {self.uploads, self.output_uri}
        buckets = {place.removeprefix("s3://") for place in places if place.startswith("s3://")}
        roots = {Path(unquote(urlsplit(place).path)) for place in places if place.startswith("file://")}
        return Storage(
            self.model_copy(
                update={
                    "file_roots": tuple(roots),
                    "buckets": (*buckets, *self.http_buckets),
                    "private_hosts": private_hosts,
                    "input_cache_dir": None,
                }
            )
        )


def is_loopback(host: str) -> bool:
    """True for an address, or the name, that only this machine can reach."""
    if host == "localhost":
        return True
    try:
        return ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
