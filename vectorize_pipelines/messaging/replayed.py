"""The dead letters that have been replayed, as the offsets of the group `<group>.dead-letter-replay` say it.

A replay may leave letters out (another reason, a limit), so one offset does not say it all: below it every letter has
been replayed, and the commit's metadata has a bit for each that follows. Committed in the transaction that sends the
letters, it is right whenever a replay is killed.
"""

import base64
import binascii
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from vectorize_pipelines.errors import KafkaError
from vectorize_pipelines.kafka.clients import consumer, retry
from vectorize_pipelines.kafka.partitions import partitions_of
from vectorize_pipelines.settings import KafkaSettings

#: What a broker takes by default (offset.metadata.max.bytes).
MAX_METADATA_CHARACTERS = 4096
#: Bits beyond which metadata is taken for damage, before memory is.
_MAX_BYTES = 2**24


@dataclass
class ReplayedOffsets:
    """The offsets of one partition that have been replayed: all below `below`, and those in `beyond`."""

    below: int = 0
    beyond: set[int] = field(default_factory=set)

    def __contains__(self, offset: int) -> bool:
        return offset < self.below or offset in self.beyond

    def add(self, offsets: Iterable[int], skipped: Iterable[int], end: int) -> None:
        """Take in a pass over the partition up to `end` (exclusive): `offsets` were replayed, `skipped` are there
        and were not. What is neither is no letter (a mark of a transaction, or gone), and holds nothing up."""
        self.beyond.update(offsets)
        self.below = max(self.below, min(skipped, default=end))
        self.beyond = {offset for offset in self.beyond if offset >= self.below}

    def encode(self) -> str:
        """Return the commit's metadata. Raises `KafkaError` where it does not fit."""
        if not self.beyond:
            return ""
        bits = bytearray((max(self.beyond) - self.below) // 8 + 1)
        for offset in self.beyond:
            bits[(offset - self.below) // 8] |= 1 << (offset - self.below) % 8
        text = base64.b85encode(zlib.compress(bytes(bits), 9)).decode()
        if len(text) > MAX_METADATA_CHARACTERS:
            raise KafkaError(
                "too many dead letters have been left out between those that were replayed to remember each; "
                "replay the oldest without --reason and --id first (`vectorize dead-letters replay --limit N`)"
            )
        return text

    @classmethod
    def decode(cls, below: int, metadata: str | None) -> "ReplayedOffsets":
        """Decode what `encode` wrote beside the offset `below`. Raises `ValueError` for anything else."""
        if not metadata:
            return cls(max(below, 0))
        try:
            unpacker = zlib.decompressobj()
            bits = unpacker.decompress(base64.b85decode(metadata), _MAX_BYTES)
        except (zlib.error, binascii.Error) as error:
            raise ValueError(str(error)) from None
        return cls(
            below,
            {below + 8 * place + bit for place, each in enumerate(bits) for bit in range(8) if each >> bit & 1},
        )


def replay_group(settings: KafkaSettings) -> str:
    """Return the group of replays, and their transactional id."""
    return f"{settings.group}.dead-letter-replay"


def replayed_offsets(settings: KafkaSettings, topic: str, client: Any = None) -> dict[int, ReplayedOffsets]:
    """Return the letters that have been replayed of each partition of the dead-letter topic. Raises `KafkaError`.

    `client` is a consumer of the group; without it one is made and closed.
    """
    from confluent_kafka import TopicPartition

    # One that reads committed messages would wait for the transaction of a replay that was killed to time out.
    reader = client or consumer(settings, replay_group(settings), **{"isolation.level": "read_uncommitted"})
    try:
        places = partitions_of(settings, [topic], reader)
        committed = retry(
            settings,
            f"asking for the offsets of the group {replay_group(settings)}",
            lambda: reader.committed([TopicPartition(*place) for place in places], timeout=settings.request_seconds),
        )
        try:
            return {each.partition: ReplayedOffsets.decode(each.offset, each.metadata) for each in committed}
        except ValueError as error:
            raise KafkaError(
                f"the offsets of the group {replay_group(settings)} were not written by a replay ({error}); "
                "delete the group to begin anew: what was replayed before is then offered again"
            ) from None
    finally:
        if client is None:
            reader.close()
