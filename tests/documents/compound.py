"""OLE files, and Outlook's messages in them, made in memory for the tests."""

import struct
from collections.abc import Mapping
from itertools import pairwise

SECTOR, SMALL_SECTOR, CUTOFF = 512, 64, 4096
FREE, END, FAT = 0xFFFFFFFF, 0xFFFFFFFE, 0xFFFFFFFD

#: A stream's bytes, or what a storage holds.
Tree = Mapping[str, "bytes | Tree"]


def compound(tree: Tree) -> bytes:
    """An OLE file of streams that are each smaller than 4,096 bytes."""
    entries: list[list[object]] = [["Root Entry", 5, FREE, FREE, 0, 0]]  # name, type, sibling, child, start, size
    small = bytearray()
    chains: list[int] = []

    def add(inner: Tree) -> int:
        numbers = []
        for name, value in inner.items():
            number = len(entries)
            numbers.append(number)
            if isinstance(value, bytes):
                assert len(value) < CUTOFF
                entries.append([name, 2, FREE, FREE, len(small) // SMALL_SECTOR, len(value)])
                count = max(1, -(-len(value) // SMALL_SECTOR))
                first = len(chains)
                chains.extend([*range(first + 1, first + count), END])
                small.extend(value.ljust(count * SMALL_SECTOR, b"\0"))
            else:
                entries.append([name, 1, FREE, FREE, 0, 0])
                entries[number][3] = add(value)
        for number, following in pairwise(numbers):
            entries[number][2] = following
        return numbers[0] if numbers else FREE

    entries[0][3] = add(tree)
    small_fat = _padded(struct.pack(f"<{len(chains)}I", *chains), 0xFF)
    contents = _padded(bytes(small), 0)
    directory_sectors = -(-len(entries) * 128 // SECTOR)
    starts = [1, 1 + directory_sectors, 1 + directory_sectors + len(small_fat) // SECTOR]
    entries[0][4], entries[0][5] = starts[2], len(small)
    directory = _padded(b"".join(map(_entry, entries)), 0)
    fat = [FAT]
    for part in (directory, small_fat, contents):
        first, count = len(fat), len(part) // SECTOR
        fat.extend([*range(first + 1, first + count), END] if count else [])
    assert len(fat) <= SECTOR // 4
    table = struct.pack(f"<{SECTOR // 4}I", *fat, *[FREE] * (SECTOR // 4 - len(fat)))
    header = struct.pack(
        "<8s16sHHHHH6xIIIIIIIIII",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", b"", 0x3E, 3, 0xFFFE, 9, 6,
        0, 1, starts[0], 0, CUTOFF, starts[1], len(small_fat) // SECTOR, END, 0, 0,
    )  # fmt: skip
    return header + struct.pack("<108I", *[FREE] * 108) + table + directory + small_fat + contents


def message(
    subject: str,
    body: str,
    sender: str,
    recipients: Mapping[str, str],
    attachments: Mapping[str, bytes | None],
    data: Mapping[int, bytes] | None = None,
) -> bytes:
    """An Outlook message; an attachment without bytes is a message in the message. `data`: its binary properties."""
    tree: dict[str, bytes | Tree] = {
        "__nameid_version1.0": {},
        **_properties(32, {0x0037: subject, 0x1000: body, 0x0C1F: sender}, data or {}),
    }
    for number, (name, address) in enumerate(recipients.items()):
        tree[f"__recip_version1.0_#{number:08X}"] = _properties(8, {0x3001: name, 0x3003: address}, {})
    for number, (name, content) in enumerate(attachments.items()):
        file = {} if content is None else {0x3701: content}
        tree[f"__attach_version1.0_#{number:08X}"] = _properties(8, {0x3707: name}, file, method=1 if file else 5)
    return compound(tree)


def _properties(
    header: int, texts: Mapping[int, str], data: Mapping[int, bytes], *, method: int | None = None
) -> dict[str, bytes | Tree]:
    values: dict[tuple[int, int], bytes] = {(number, 0x1F): text.encode("utf-16-le") for number, text in texts.items()}
    values |= {(number, 0x102): content for number, content in data.items()}
    entries = [struct.pack("<HHIII", 0x0003, 0x3705, 6, method, 0)] if method else []
    entries += [struct.pack("<HHIII", kind, number, 6, len(content), 0) for (number, kind), content in values.items()]
    streams: dict[str, bytes | Tree] = {
        f"__substg1.0_{number:04X}{kind:04X}": content for (number, kind), content in values.items()
    }
    return {"__properties_version1.0": bytes(header) + b"".join(entries), **streams}


def _entry(fields: list[object]) -> bytes:
    name, kind, sibling, child, start, size = fields
    assert isinstance(name, str)
    encoded = name.encode("utf-16-le") + b"\0\0"
    return struct.pack(
        "<64sHBBIII16sI8s8sIII", encoded, len(encoded), kind, 1, FREE, sibling, child, b"", 0, b"", b"", start, size, 0
    )


def _padded(content: bytes, filler: int) -> bytes:
    return content + bytes([filler]) * (-len(content) % SECTOR)
