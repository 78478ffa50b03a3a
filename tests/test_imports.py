"""What has to start fast imports nothing heavy. Which package may import which is `[tool.importlinter]`'s to say."""

import subprocess
import sys

import pytest

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
        ("vectorize_pipelines.pipeline.files.documents", (*HEAVY, "dagster")),
        ("vectorize_pipelines.cli", (*HEAVY, "dagster")),
        ("vectorize_pipelines.cli.serve", (*HEAVY, "dagster", "fastapi")),
        ("vectorize_pipelines.gateway.server", (*HEAVY, "dagster")),
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
