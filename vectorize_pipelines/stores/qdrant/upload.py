"""The writing of many points: numpy to gRPC by its bytes, some requests under way at once, each of them waited for.

Called by `QdrantStore.upsert`. The client's `upload_collection` does the same but for two things: it repeats a failed
request at once and without a pause, and it does not tell how many points were written.
"""

import threading
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from vectorize_pipelines.errors import StoreUnavailableError
from vectorize_pipelines.stores.qdrant.connection import Connection
from vectorize_pipelines.stores.qdrant.points import Points

if TYPE_CHECKING:
    from vectorize_pipelines.settings import QdrantSettings


class Upload:
    """One upsert."""

    def __init__(self, connection: Connection, physical: str, settings: "QdrantSettings"):
        self._connection = connection
        self._physical = physical
        self._settings = settings
        self._counting = threading.Lock()
        self._records = self._written = 0

    def state(self) -> str:
        """Return how many points the store has confirmed, for the message of a failure."""
        return f"{self._written} of {self._records} records were written; to write all of them again does no harm"

    def write(self, points: Points) -> None:
        """Write all points; raises the first failure, once no request is under way any more."""
        self._records = len(points.ids)
        depth = 1 if self._connection.local else self._settings.concurrency
        with ThreadPoolExecutor(depth, "vectorize-qdrant") as pool:
            under_way: set[Future[None]] = set()
            for piece in points.pieces(self._settings.batch_rows):
                ready = self._local_points(*piece) if self._connection.local else self._grpc_points(*piece)
                under_way.add(pool.submit(self._send, ready))
                if len(under_way) > depth:
                    under_way = _without_finished(under_way)
            while under_way:
                under_way = _without_finished(under_way)

    def _send(self, points: list[Any]) -> None:
        status = self._connection.upsert(self._physical, points)
        if status != "completed":
            raise StoreUnavailableError(
                f"{self._connection.location} has taken {len(points)} points but not applied them ({status}); "
                "look at the server's load, and call again"
            )
        with self._counting:
            self._written += len(points)

    @staticmethod
    def _grpc_points(ids: list[str], vectors: npt.NDArray[np.float32], payloads: list[dict[str, Any]]) -> list[Any]:
        from qdrant_client import grpc
        from qdrant_client.conversions.conversion import payload_to_grpc
        from qdrant_client.uploader.grpc_uploader import convert_vector_struct

        return [
            grpc.PointStruct(
                id=grpc.PointId(uuid=one), vectors=convert_vector_struct(vector), payload=payload_to_grpc(payload)
            )
            for one, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]

    @staticmethod
    def _local_points(ids: list[str], vectors: npt.NDArray[np.float32], payloads: list[dict[str, Any]]) -> list[Any]:
        from qdrant_client import models

        return [
            models.PointStruct(id=one, vector=vector.tolist(), payload=payload)
            for one, vector, payload in zip(ids, vectors, payloads, strict=True)
        ]


def _without_finished(under_way: set[Future[None]]) -> set[Future[None]]:
    """Wait for at least one; raises what it raised."""
    done, others = wait(under_way, return_when=FIRST_COMPLETED)
    for one in done:
        one.result()
    return others
