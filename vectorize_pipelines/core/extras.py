"""The optional parts of the project: which libraries each has, whether they are there, and what installs them.

Callers ask before they import, so that what is missing is named with its remedy: `needs("the engine torch", "torch")`.
Nothing is imported to find out.
"""

import importlib.util
from collections.abc import Mapping

#: Extra -> the module that shows that it is installed, and the package that has it.
EXTRAS: Mapping[str, tuple[str, str]] = {
    "torch": ("torch", "torch"),
    "clip": ("open_clip", "open-clip-torch"),
    "sentence-transformers": ("sentence_transformers", "sentence-transformers"),
    "qdrant": ("qdrant_client", "qdrant-client"),
    "weaviate": ("weaviate", "weaviate-client"),
    "providers": ("openai", "openai"),
    "redis": ("redis", "redis"),
    "celery": ("dagster_celery", "dagster-celery"),
    "k8s": ("dagster_k8s", "dagster-k8s"),
    "postgres": ("dagster_postgres", "dagster-postgres"),
    "s3": ("s3fs", "s3fs"),
    "gcs": ("gcsfs", "gcsfs"),
    "azure": ("adlfs", "adlfs"),
    "ocr": ("rapidocr", "rapidocr"),
    "heif": ("pillow_heif", "pillow-heif"),
}


def is_installed(extra: str) -> bool:
    """Whether the libraries of an extra are there."""
    return importlib.util.find_spec(EXTRAS[extra][0]) is not None


def install_command(extra: str) -> str:
    """The command that installs an extra."""
    return f"pip install 'vectorize-pipelines[{extra}]'"


def needs(what: str, extra: str) -> str:
    """A line for people: `the store qdrant needs qdrant-client, which is not installed: pip install …`."""
    return f"{what} needs {EXTRAS[extra][1]}, which is not installed: {install_command(extra)}"


def missing(what: str, *extras: str) -> str | None:
    """What `needs` says of the first of `extras` that is not installed; None where all are."""
    return next((needs(what, extra) for extra in extras if not is_installed(extra)), None)
