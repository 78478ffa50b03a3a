"""Parser processes that the tests of a module here share."""

from tests.parsers import parsers, shared_parsers

__all__ = ["parsers", "shared_parsers"]
