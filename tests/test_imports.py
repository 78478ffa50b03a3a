"""What has to start fast imports nothing heavy. Which package may import which is `[tool.importlinter]`'s to say."""

import json
import subprocess
import sys

import pytest

_ENGINES_AND_STORES = (
    *("torch", "transformers", "sentence_transformers", "openvino"),
    *("lancedb", "weaviate", "qdrant_client"),
)
_HEAVY = (*_ENGINES_AND_STORES, "grpc", "pandas", "matplotlib")
#: What is imported, in this order in one process -> what it does not need, nor what comes before it.
LIGHT = {
    "vectorize_pipelines.encoders": (*_HEAVY, "dagster", "fastapi"),
    "vectorize_pipelines.stores": (*_HEAVY, "dagster", "fastapi"),
    "vectorize_pipelines.pipeline.files.documents": (*_HEAVY, "dagster", "fastapi"),
    "vectorize_pipelines.cli": (*_HEAVY, "dagster", "fastapi"),
    "vectorize_pipelines.cli.serve": (*_HEAVY, "dagster", "fastapi"),
    "vectorize_pipelines.gateway.server": (*_HEAVY, "dagster"),
    # The code server and the sensors: Dagster and pandas (a type of the IO manager), but no model and no store.
    "vectorize_pipelines.definitions": _ENGINES_AND_STORES,
}
_IMPORT = """
import importlib, json, sys

found = {}
for module, heavy in json.loads(sys.argv[1]).items():
    importlib.import_module(module)
    found[module] = [name for name in heavy if name in sys.modules]
print(json.dumps(found))
"""


@pytest.mark.slow
def test_importing_is_light() -> None:
    command = [sys.executable, "-c", _IMPORT, json.dumps(LIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {module: [] for module in LIGHT}
