"""Shells complete the names of commands and options."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("command", "words", "completed"),
    [("producer", "producer sub", "submit"), ("producer", "producer submit --num", "--num-inference-steps")],
)
def test_bash_completes_commands_and_options(command: str, words: str, completed: str) -> None:
    asked = {
        f"_{command.upper()}_COMPLETE": "complete_bash",
        "COMP_WORDS": words,
        "COMP_CWORD": str(words.count(" ")),
    }
    program = f"from {command}.cli import main; main()"

    ended = subprocess.run([sys.executable, "-c", program], env={**os.environ, **asked}, capture_output=True, text=True)

    assert completed in ended.stdout.split()
