"""The suite that every vector store passes, for the stores of this package and of others. Needs pytest and hypothesis.

A store's own test module subclasses the classes of `suite` and says how the store is opened; see there, and
docs/adding-a-store.md. Nothing but tests imports it.
"""

import pytest

pytest.register_assert_rewrite(f"{__name__}.suite")  # so that a failed assertion shows its values

from vectorize_pipelines.stores.conformance.suite import (  # noqa: E402
    Collections,
    Filters,
    Histories,
    Rows,
    Search,
)

__all__ = ["Collections", "Filters", "Histories", "Rows", "Search"]
