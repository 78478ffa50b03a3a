"""Imports point downwards only, and what has to start fast imports nothing heavy."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import vectorize_pipelines

PACKAGE = Path(vectorize_pipelines.__file__).parent
UPPER = {
    "definitions",
    "partitions",
    "jobs",
    "schedules",
    "retention",
    "dead_runs",
    "drain_runs",
    "assets",
    "sensors",
    "resources",
}
#: Entry points above both halves: they may import Dagster, inside functions.
ENTRY = {"cli", "dev"}


def _half(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0].removesuffix(".py")


def _imports(file: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
    return names


LOWER_FILES = [file for file in PACKAGE.rglob("*.py") if _half(file) not in UPPER | ENTRY]


def test_the_lower_half_is_there() -> None:
    assert {"pipeline", "sources", "documents", "encoders", "stores"} <= {_half(file) for file in LOWER_FILES}


@pytest.mark.parametrize("file", LOWER_FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_the_lower_half_imports_neither_dagster_nor_the_upper_half(file: Path) -> None:
    above = {f"vectorize_pipelines.{name}" for name in UPPER | ENTRY}
    for name in _imports(file):
        assert not name.startswith("dagster"), f"{file} imports {name}"
        assert not any(name == each or name.startswith(each + ".") for each in above), f"{file} imports {name}"


HEAVY = (
    "torch",
    "transformers",
    "sentence_transformers",
    "openvino",
    "lancedb",
    "weaviate",
    "grpc",
    "qdrant_client",
    "pandas",
    "matplotlib",
)


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        ("vectorize_pipelines.encoders", (*HEAVY, "dagster")),
        ("vectorize_pipelines.stores", (*HEAVY, "dagster")),
        ("vectorize_pipelines.pipeline.documents", (*HEAVY, "dagster")),
        ("vectorize_pipelines.cli", (*HEAVY, "dagster")),
        # The code server and the sensors: Dagster and pandas (a type of the IO manager), but no model and no store.
        (
            "vectorize_pipelines.definitions",
            ("torch", "transformers", "sentence_transformers", "openvino", "lancedb", "weaviate", "qdrant_client"),
        ),
    ],
)
def test_importing_is_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print(*[name for name in {heavy!r} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []
