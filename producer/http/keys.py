"""API keys: who calls, and how many images a minute. Settings hold the keys' hashes, and nobody holds the keys."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Mapping
from dataclasses import dataclass

KEY_PREFIX = "dg_"
KEY_BYTES = 32
"""Random bytes of a key: so many that a plain hash of it cannot be turned round."""

ENTRY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_-]{0,31}):([0-9a-f]{64})(?::([1-9]\d{0,6}))?")
ENTRY_FORM = "tenant:sha256-of-the-key, or tenant:sha256:images-a-minute"


@dataclass(frozen=True)
class Caller:
    """Whoever sends a request; without keys there is one caller, who has no tenant and sees every job."""

    tenant: str | None = None
    images_per_minute: int | None = None

    def own(self, name: str) -> str:
        """The id or batch in the ledger that this caller means by a name: two callers never mean the same one."""
        prefix = f"{self.tenant}:" if self.tenant else ""
        return name if name.startswith(prefix) else prefix + name


NOBODY_IN_PARTICULAR = Caller()


@dataclass(frozen=True)
class ApiKeys:
    """Callers by the SHA-256 of their key."""

    callers: Mapping[str, Caller]

    @classmethod
    def parse(cls, text: str) -> ApiKeys:
        """Read entries of the form `ENTRY_FORM`, separated by blanks or commas; a tenant may have several keys.

        Raises:
            ValueError: an entry has another form.
        """
        callers: dict[str, Caller] = {}
        for entry in text.replace(",", " ").split():
            found = ENTRY.fullmatch(entry)
            if found is None:
                raise ValueError(f"expected {ENTRY_FORM}; make one with: producer serve --new-key NAME")
            callers[found[2]] = Caller(found[1], int(found[3]) if found[3] else None)
        return cls(callers)

    def __bool__(self) -> bool:
        return bool(self.callers)

    def caller(self, key: str) -> Caller | None:
        """Whom a key belongs to; None when nobody."""
        return self.callers.get(_hash(key))


def new_key(name: str) -> tuple[str, str]:
    """Make a key for a tenant, or for `tenant:images-a-minute`; the key, and its entry in `DG_API_KEYS`.

    Raises:
        ValueError: the name is none for a tenant.
    """
    tenant, separator, rate = name.partition(":")
    key = KEY_PREFIX + secrets.token_urlsafe(KEY_BYTES)
    entry = f"{tenant}:{_hash(key)}{separator}{rate}"
    if not ENTRY.fullmatch(entry):
        raise ValueError("expected a name of letters, digits, _ and -, and perhaps :images-a-minute")
    return key, entry


def _hash(key: str) -> str:
    return hashlib.sha256(key.encode(errors="replace")).hexdigest()
