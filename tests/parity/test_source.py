"""Where the official code is absent, as in a plain clone."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from kontext.errors import CheckpointError
from kontext.official import find_source


def test_an_empty_submodule_is_one_line_with_the_command_that_fills_it(tmp_path: Path) -> None:
    (tmp_path / "third_party" / "flux1").mkdir(parents=True)

    with pytest.raises(CheckpointError, match=re.escape("git submodule update --init third_party/flux1")) as raised:
        find_source(tmp_path)

    assert "\n" not in str(raised.value)


def test_importing_the_official_engine_imports_nothing_official() -> None:
    program = "import kontext.official, sys; print(any(name.split('.')[0] == 'flux' for name in sys.modules))"

    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)

    assert ended.stdout == "False\n"
