"""The figures of a partition as Dagster metadata: numbers where people compare them over time, so the UI plots them."""

from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import dagster as dg
import pyarrow as pa

from vectorize_pipelines.pipeline.stream import EmbeddingStream
from vectorize_pipelines.pipeline.totals import DayTotals, Failure, SourceNotice
from vectorize_pipelines.stores.base import Collection

PREVIEW_ROWS = 5
PREVIEW_CHARACTERS = 160
FAILURES_SHOWN = 100
NOTICES_SHOWN = 100


class Preview:
    """The first rows that a run wrote of each day."""

    def __init__(self) -> None:
        self._rows: defaultdict[str, list[dg.TableRecord]] = defaultdict(list)

    def add(self, records: pa.Table) -> None:
        """Takes what is still wanted out of a batch."""
        days = records["partition"].to_pylist()
        for n, day in enumerate(days):
            if len(self._rows[day]) < PREVIEW_ROWS:
                row = records.select(("source_id", "item_index", "page", "text")).slice(n, 1).to_pylist()[0]
                self._rows[day].append(
                    dg.TableRecord(
                        {
                            "source": row["source_id"],
                            "item": row["item_index"],
                            "page": row["page"] or 0,
                            "text": (row["text"] or "")[:PREVIEW_CHARACTERS],
                        }
                    )
                )

    def of(self, day: str) -> list[dg.TableRecord]:
        """The rows of a day; none where nothing of it was written."""
        return self._rows.get(day, [])


def failures_table(failures: Sequence[Failure]) -> dg.TableMetadataValue:
    """Return the first of some failures as a table."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord({"source": failure.source_id, "error": failure.error_class, "message": failure.message})
            for failure in failures[:FAILURES_SHOWN]
        ]
    )


def notices_table(notices: Sequence[SourceNotice]) -> dg.TableMetadataValue:
    """Return the first of some notices as a table."""
    return dg.MetadataValue.table(
        [
            dg.TableRecord(
                {
                    "source": each.source_id,
                    "kind": each.notice.kind.value,
                    "what": each.notice.what,
                    "remedy": each.notice.remedy,
                }
            )
            for each in notices[:NOTICES_SHOWN]
        ]
    )


def day_metadata(
    stream: EmbeddingStream, day: str, collections: Sequence[Collection], preview: Preview
) -> dict[str, Any]:
    """Everything that the UI shows of one day of one run; `collections` are those that it wrote to, by name."""
    totals = stream.totals.get(day, DayTotals())
    metadata: dict[str, Any] = {
        "documents": totals.documents,
        "chunks": totals.chunks,
        "encoded": totals.encoded,
        "deduplicated": totals.deduplicated,
        "cache_hits": totals.cache_hits,
        "skipped": totals.skipped,
        "deleted": totals.deleted,
        "failed": totals.failed,
        "incomplete": totals.incomplete,
        "assumed": totals.assumed,
        "read_seconds": round(totals.read_seconds, 4),
        "encode_seconds": round(totals.encode_seconds, 4),
        "cache_seconds": round(totals.cache_seconds, 4),
        "write_seconds": round(totals.write_seconds, 4),
        "collection": ", ".join(each.name for each in collections) or stream.collection,
        "model": stream.model,
    }
    if collections:
        metadata["physical_collection"] = ", ".join(each.physical for each in collections)
        location = collections[0].location
        metadata["location"] = (dg.MetadataValue.url if "://" in location else dg.MetadataValue.path)(location)
    if totals.encode_seconds:
        metadata["texts_per_second"] = round(totals.encoded / totals.encode_seconds, 1)
    if totals.truncated:
        metadata["truncated"] = totals.truncated
    if totals.tokens or not totals.encoded:  # images have none
        metadata["tokens"] = totals.tokens
        if totals.encode_seconds:
            metadata["tokens_per_second"] = round(totals.tokens / totals.encode_seconds, 1)
    if totals.cost:
        metadata["cost"] = round(totals.cost, 6)
    choice = stream.choice
    if choice is not None:
        metadata["engine"] = f"{choice.engine} on {choice.device}, {choice.precision}: {choice.reason}"
    for name, count in sorted(totals.errors.items()):
        metadata[f"errors/{name}"] = count
    failures = [failure for failure in stream.failures if failure.day == day]
    if failures:
        metadata["failures"] = failures_table(failures)
    notices = [each for each in stream.notices if each.day == day]
    if notices:
        metadata["notices"] = notices_table(notices)
    if preview.of(day):
        metadata["preview"] = dg.MetadataValue.table(preview.of(day))
    return metadata
