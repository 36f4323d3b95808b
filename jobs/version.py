"""The version of this program, which `pyproject.toml` alone states."""

from __future__ import annotations

from importlib.metadata import PackageNotFoundError, version

DISTRIBUTION = "kontext-edits"


def program_version() -> str:
    """Version of the installed package; `unknown` in a tree that is not installed."""
    try:
        return version(DISTRIBUTION)
    except PackageNotFoundError:
        return "unknown"
