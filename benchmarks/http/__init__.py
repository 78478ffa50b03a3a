"""The benchmarks of `vectorize serve`: what is left over HTTP of what the parts behind it do by themselves."""

from pathlib import Path

from benchmarks.figures import Figure
from benchmarks.http import embeddings, ledger, proxy, search, tasks

__all__ = ["ledger", "run"]


def run(place: Path) -> list[Figure]:
    """Embeddings beside `encode` and Infinity, tasks beside a bare producer, search beside the store, and the proxy."""
    return [
        *embeddings.run(place / "embeddings"),
        *tasks.run(place / "tasks"),
        *search.run(place / "search"),
        *proxy.run(place / "proxy"),
    ]
