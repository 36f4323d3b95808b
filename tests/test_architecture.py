"""Imports point one way, `producer -> jobs <- storage <- worker -> kontext <- training`, and never in a loop.

The producer uses storage too, to put images of a table where workers read them. Benchmarks may use every package of
the product, tests everything. Enqueueing needs no torch.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

MAY_IMPORT = {
    "jobs": set(),
    "kontext": set(),
    "storage": {"jobs"},
    "producer": {"jobs", "storage"},
    "worker": {"jobs", "storage", "kontext"},
    "training": {"kontext"},
    "benchmarks": {"jobs", "storage", "producer", "worker", "kontext", "training"},
    "tests": {"jobs", "storage", "producer", "worker", "kontext", "training", "benchmarks"},
}

SERVICE_LIBRARIES = {"celery", "kombu", "redis", "boto3", "botocore", "httpx2", "pydantic_settings"}
WORKER_LIBRARIES = {"torch", "transformers", "tokenizers", "safetensors", "numpy", "PIL", "boto3", "botocore", "httpx2"}
ENTRANCES = ["import jobs", "import producer", "from producer import Client, EditJob", "import producer.cli"]


def test_every_package_has_its_place_in_the_order() -> None:
    assert {path.parent.name for path in ROOT.glob("*/__init__.py")} == MAY_IMPORT.keys()


@pytest.mark.parametrize("package", MAY_IMPORT)
def test_imports_point_one_way(package: str) -> None:
    forbidden = MAY_IMPORT.keys() - MAY_IMPORT[package] - {package}

    assert imports_of(package, forbidden) == []


def test_no_modules_import_each_other_in_a_loop() -> None:
    loops = import_loops(import_graph())

    assert loops == []


def test_a_loop_is_found_however_long_it_is_and_whoever_leads_to_it() -> None:
    graph = {"a": {"b"}, "b": {"c"}, "c": {"d"}, "d": {"b"}, "e": {"a", "f"}, "f": set()}

    assert import_loops(graph) == [["b", "c", "d"]]


def test_no_module_of_tests_is_imported_by_another() -> None:
    imported = {
        f"{path.relative_to(ROOT)}:{line}: {module}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for module, line in imported_modules(path)
        if module.startswith("tests.") and module.rpartition(".")[2].startswith("test_")
    }

    assert imported == set()


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
        f"{name}:{line}: {module}"
        for path in sorted((ROOT / package).rglob("*.py"))
        for name in [path.relative_to(ROOT).as_posix()]
        for module, line in imported_modules(path)
        if module.split(".")[0] in forbidden
    ]


def imported_modules(path: Path) -> Iterator[tuple[str, int]]:
    """Each module that a file imports, with the line; `from package import module` imports the module."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and node.level == 0:
            names = (f"{node.module}.{alias.name}" for alias in node.names)
            yield from ((name if is_module(name) else node.module, node.lineno) for name in names)


@cache
def is_module(name: str) -> bool:
    path = ROOT / name.replace(".", "/")
    return path.with_suffix(".py").is_file() or (path / "__init__.py").is_file()


def import_graph() -> dict[str, set[str]]:
    """Every module of the repository with those that it imports, also inside a function or for types only."""
    paths = {module_name(path): path for package in MAY_IMPORT for path in (ROOT / package).rglob("*.py")}
    return {
        name: {module for module, _ in imported_modules(path)} & paths.keys() - {name} for name, path in paths.items()
    }


def module_name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def import_loops(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules each of which leads to every other one of its group."""
    reached = {name: reachable(graph, name) for name in graph}
    loops = {
        tuple(sorted(other for other in reached[name] if name in reached[other]))
        for name in graph
        if name in reached[name]
    }
    return sorted(map(list, loops))


def reachable(graph: dict[str, set[str]], start: str) -> set[str]:
    """Modules that `start` imports, directly or through others."""
    found: set[str] = set()
    waiting = [*graph[start]]
    while waiting:
        name = waiting.pop()
        if name not in found:
            found.add(name)
            waiting.extend(graph[name])
    return found


def run_python(program: str) -> str:
    """Run a program in a fresh interpreter and return what it prints."""
    ended = subprocess.run([sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
    return ended.stdout
