"""Store profiles: access to buckets that jobs ask for by a name of the worker's, never by keys.

A profile is one of the AWS configuration, whose files hold keys, endpoint and region; `DG_STORE_PROFILES` says which of
them jobs may name, what each opens, and to whose jobs.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

from jobs.schema import JOB_ID_PATTERN, STORE_PROFILE_PATTERN

FORM = "NAME=BUCKET,BUCKET/PREFIX or NAME:TENANT,TENANT=BUCKET, several separated by blanks"


@dataclass(frozen=True)
class StoreProfile:
    """What a profile opens: places, `bucket` or `bucket/prefix`, to jobs of these tenants; of none named, of all."""

    name: str
    places: tuple[str, ...]
    tenants: tuple[str, ...] = ()

    def is_open_to(self, tenant: str | None) -> bool:
        return not self.tenants or tenant in self.tenants


def parse_profiles(value: Any) -> Any:
    """Read entries of the form `FORM`.

    Raises:
        ValueError: an entry has another form, or a name comes twice.
    """
    if not isinstance(value, str):
        return value
    profiles = tuple(_parse(entry) for entry in value.split())
    if len({profile.name for profile in profiles}) < len(profiles):
        raise ValueError("names a profile twice")
    return profiles


def _parse(entry: str) -> StoreProfile:
    who, _, opened = entry.partition("=")
    name, colon, tenants = who.partition(":")
    places = tuple(place.removeprefix("s3://").strip("/") for place in opened.split(","))
    of = tuple(tenants.split(",")) if colon else ()
    is_right = re.fullmatch(STORE_PROFILE_PATTERN, name) and all(re.fullmatch(JOB_ID_PATTERN, one) for one in of)
    # Unlike DG_BUCKETS no `*`: whoever may name the profile would have every bucket of its account.
    if not is_right or not all(re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*(/[^:]*)?", place) for place in places):
        raise ValueError(f"expected {FORM}")
    return StoreProfile(name, places, of)
