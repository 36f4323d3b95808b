"""Settings of what reads inputs and publishes outputs.

S3 settings are boto3's own (`AWS_*`, `AWS_ENDPOINT_URL`) and do not appear here.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from pydantic import BeforeValidator, Field, field_validator
from pydantic_settings import NoDecode

from jobs.settings import BrokerSettings, Bytes, Names, Paths, Ports, Seconds
from storage.profiles import StoreProfile, parse_profiles

StoreProfiles = Annotated[tuple[StoreProfile, ...], NoDecode, BeforeValidator(parse_profiles)]


class StorageSettings(BrokerSettings):
    """The variables that say which files, buckets and hosts a job may touch, and how large an input may be."""

    file_roots: Paths = Field((), description="folders that file:// may touch, separated by ':'")
    buckets: Names = Field((), description="what s3:// may touch: bucket, bucket/prefix, or *")
    store_profiles: StoreProfiles = Field(
        (), description="AWS profiles that jobs may name: NAME=bucket,bucket/prefix or NAME:tenant=bucket"
    )
    private_hosts: Names = Field((), description="private hosts or networks that http(s):// may reach")
    output_hosts: Names = Field((), description="hosts that outputs may be put to over http(s)://: host, .domain or *")
    input_cache_dir: Path | None = Field(None, description="folder that keeps downloaded inputs; default: none is kept")
    ports: Ports = Field((80, 443), description="ports of public hosts that http(s):// and callbacks may reach")
    proxy: str | None = Field(None, repr=False, description="HTTP proxy for public http(s):// inputs and callbacks")
    contact: str | None = Field(None, description="mail or web address that web hosts are told in User-Agent")
    input_stall_seconds: Seconds = Field(
        15, description="longest silence of an http(s) input's host; a slower fetch needs one of few places"
    )
    max_input_bytes: Bytes = Field(64 * 2**20, description="largest input file")
    max_input_pixels: int = Field(64_000_000, gt=0, description="largest input picture, width times height")

    @field_validator("proxy")
    @classmethod
    def _proxy_is_http(cls, value: str | None) -> str | None:
        address = urlsplit(value or "http://none")
        if address.scheme not in ("http", "https") or not address.hostname or address.path.strip("/"):
            raise ValueError("expected http://host:port or http://user:password@host:port")
        return value

    @field_validator("contact")
    @classmethod
    def _contact_fits_into_a_header(cls, value: str | None) -> str | None:
        if value is not None and not re.fullmatch(r"[!-'*-~]([ -'*-~]{0,198}[!-'*-~])?", value):
            raise ValueError("expected a mail or web address, such as ops@example.org")
        return value

    @field_validator("output_hosts")
    @classmethod
    def _hosts_without_ports(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if not all(re.fullmatch(r"\*|\.?[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?", host) for host in value):
            raise ValueError("expected host names without port such as bucket.s3.example.com, .example.com, or *")
        return tuple(host.lower() for host in value)

    @field_validator("buckets")
    @classmethod
    def _places_in_buckets(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        places = tuple(place.removeprefix("s3://").rstrip("/") for place in value)
        if not all(place and ":" not in place and place[0] != "/" for place in places):
            raise ValueError("expected names of buckets, s3://bucket/prefix, or *")
        return places
