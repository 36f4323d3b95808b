"""Imports point one way, `producer -> jobs <- storage <- worker -> kontext <- training`; enqueueing needs no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "jobs": set(),
    "kontext": set(),
    "storage": {"jobs"},
    "producer": {"jobs"},
    "worker": {"jobs", "storage", "kontext"},
    "training": {"kontext"},
}
SERVICE_LIBRARIES = {"celery", "kombu", "redis", "boto3", "botocore", "httpx2", "pydantic_settings"}
WORKER_LIBRARIES = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "boto3", "botocore", "httpx2"}
ENTRANCES = ["import jobs", "import producer", "from producer import Client, EditJob", "import producer.cli"]


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}

    assert imports_of(package, forbidden) == []


def test_the_model_knows_no_queue_no_http_no_s3_and_no_settings() -> None:
    assert imports_of("kontext", SERVICE_LIBRARIES) == []


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_enqueueing_loads_nothing_of_the_gpu_stack(entrance: str) -> None:
    loaded = run_python(f"{entrance}; import sys; print(*sys.modules)").split()

    assert WORKER_LIBRARIES.intersection(loaded) == set()


@pytest.mark.parametrize("entrance", ENTRANCES)
def test_enqueueing_works_where_the_gpu_stack_is_not_installed(entrance: str) -> None:
    # A None in sys.modules makes Python refuse the import as it does for a package that is not there.
    run_python(f"import sys; sys.modules.update(dict.fromkeys({sorted(WORKER_LIBRARIES)}, None)); {entrance}")


def test_a_worker_loads_torch_only_with_its_engine() -> None:
    loaded = run_python("import worker.lifecycle, sys; print(*sys.modules)").split()

    assert {"torch", "transformers"}.intersection(loaded) == set()


def imports_of(package: str, forbidden: set[str]) -> list[str]:
    """`file:line: module` of every import of a forbidden package, at the top of a file or inside a function."""
    return [
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for module, line in imported_modules(path)
        if module.split(".")[0] in forbidden
    ]


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            yield node.module, node.lineno


def run_python(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
