"""Connections to LanceDB, with the limits on memory that a run needs. Called by `catalogue` and the maintenance."""

import contextlib
import ctypes
import importlib.util
import os
import sys
from typing import Any

from vectorize_pipelines.stores.lancedb.location import Location

# LanceDB offers no arguments for these. By default it reads up to 2 GiB ahead, and several fragments at once:
# compacting 300,000 rows of 384 dimensions then took 420 MB over the process's own size, with these 180 MB, and
# a flat search of as many became a quarter faster. Its log goes to standard error and warns of every new table.
_ENVIRONMENT = {
    "LANCE_DEFAULT_IO_BUFFER_SIZE": str(64 * 2**20),
    "LANCE_DEFAULT_FRAGMENT_READAHEAD": "1",
    "LANCE_DEFAULT_BATCH_SIZE": "2048",
    "LANCEDB_LOG": "error",
}
# For an object store: fragments that are read one after another cost a round trip each. With round trips of 30 ms, a
# search in 30 small fragments took 1.6 s with one at a time and 0.35 s with these, an upsert of 20 rows 2 s and 0.6 s.
_FRAGMENTS_READ_TOGETHER = "16"
# The defaults are 6 GiB and 1 GiB.
_INDEX_CACHE_BYTES = 256 * 2**20
_METADATA_CACHE_BYTES = 16 * 2**20

# `M_ARENA_MAX` of glibc's malloc.h. By default eight arenas a core grow side by side, one for each few threads, and
# LanceDB has many: with two, writing 100,000 passages peaked at 340 MiB instead of 370.
_M_ARENA_MAX = -8
_ARENAS = 2


def connect(location: Location) -> Any:
    """Return a connection of `lancedb`; raises what LanceDB raises."""
    read_together = {} if location.directory else {"LANCE_DEFAULT_FRAGMENT_READAHEAD": _FRAGMENTS_READ_TOGETHER}
    for name, value in (_ENVIRONMENT | read_together).items():
        os.environ.setdefault(name, value)
    with contextlib.suppress(AttributeError, OSError):  # where the C library is another one
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, _ARENAS)

    lancedb = _import_lancedb()

    session = lancedb.Session(
        index_cache_size_bytes=_INDEX_CACHE_BYTES, metadata_cache_size_bytes=_METADATA_CACHE_BYTES
    )
    return lancedb.connect(location.uri, session=session, storage_options=dict(location.options) or None)


def _import_lancedb() -> Any:
    """Return the `lancedb` package, without the clients of a REST server that an embedded database never calls.

    Building their validators takes almost half of the time of importing lancedb; it needs the client package's
    models only, and so finds the package as one whose own module has not been run.
    """
    client = "lance_namespace_urllib3_client"
    spec = importlib.util.find_spec(client)
    hollow = spec is not None and client not in sys.modules and "lancedb" not in sys.modules
    if spec is not None and hollow:
        sys.modules[client] = importlib.util.module_from_spec(spec)
    try:
        import lancedb
    finally:
        if hollow:  # an import of the client itself gets it whole
            del sys.modules[client]
    return lancedb
