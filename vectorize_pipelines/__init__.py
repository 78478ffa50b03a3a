"""Text, images and documents become vectors in the user's vector store, run by Dagster.

Upper half (thin, speaks Dagster): `definitions`, `jobs`, `partitions`, `schedules`, `assets`, `sensors`, `resources`,
`runs`, `cli`, `compat`. Lower half (a plain library, no Dagster import): everything else.
`docs/architecture.md` has the picture.

The names below are imported when they are first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vectorize_pipelines.client import VectorizeClient
    from vectorize_pipelines.encoders import load_encoder
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.stores import open_store

    __version__: str

__all__ = ["VectorizeClient", "__version__", "load_encoder", "load_settings", "open_store"]

_HOMES = {
    "VectorizeClient": "client",
    "load_encoder": "encoders",
    "load_settings": "settings",
    "open_store": "stores",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        return version("vectorize-pipelines")
    if name in _HOMES:
        return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
