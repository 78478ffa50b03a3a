"""ZIP and TAR archives: each document inside is one of its own, called `archive.zip!/folder/a.pdf`.

Nothing is unpacked to disk; members are parsed one after the other, within the limits that hold for all together.
"""

import stat
import tarfile
import zipfile
import zlib
from io import BytesIO

from vectorize_pipelines.core.notices import Notice, assumed, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    DecompressionLimitError,
    EmptyDocumentError,
    EncryptedDocumentError,
    damage_reported,
)
from vectorize_pipelines.documents.formats.members import MemberReader
from vectorize_pipelines.documents.formats.package import ENCRYPTED_FLAG, READ_BYTES
from vectorize_pipelines.documents.types import ParsedDocument
from vectorize_pipelines.errors import ItemError

_UTF8_NAME = 0x800
#: Of what decompressed tars may hold beside their members: headers, padding, members that are not read.
_TAR_SLACK = 4


def parse_zip(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the documents inside as members. Raises `DecompressionLimitError`, `EmptyDocumentError` and others."""
    reader = MemberReader(context, "member")
    with damage_reported("ZIP archive"), zipfile.ZipFile(BytesIO(content)) as archive:
        for member in archive.infolist():
            name = _zip_name(member)
            if member.is_dir() or stat.S_ISLNK(member.external_attr >> 16) or not reader.is_read(name):
                continue
            if member.flag_bits & ENCRYPTED_FLAG:
                reader.fail(name, EncryptedDocumentError("is encrypted; remove the password"))
                continue
            reader.begin(member.file_size)
            try:
                data = _unpacked(archive, member, context)
            except ItemError as error:
                reader.fail(name, error)
            else:
                reader.read(name, data)
    return _document(reader, "zip")


def parse_tar(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the documents inside as members. Raises `DecompressionLimitError`, `EmptyDocumentError` and others."""
    reader = MemberReader(context, "member")
    notices: tuple[Notice, ...] = ()
    try:
        with damage_reported("TAR archive"), tarfile.open(fileobj=BytesIO(content), mode="r:*") as archive:
            _read_tar(archive, reader, context)
            notices = _check_end(archive)
    except CorruptDocumentError as error:
        if not reader.members:
            raise
        what = f"what comes behind its member {reader.members[-1].name} is not embedded: the archive {error}"
        notices = (omitted(what.rpartition("; ")[0], "replace it"),)
    return _document(reader, "tar", notices)


def _read_tar(archive: tarfile.TarFile, reader: MemberReader, context: ParseContext) -> None:
    most = context.settings.max_decompressed_bytes * _TAR_SLACK
    passed = 0
    for member in archive:
        # Also what is not read is decompressed on the way to the next one.
        passed += max(member.size, 0) + tarfile.BLOCKSIZE
        if passed > most:
            raise DecompressionLimitError(
                f"unpacks to more than {most:,} bytes; unpack it, or raise VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
            )
        if not member.isreg() or not reader.is_read(member.name):
            continue
        reader.begin(member.size)
        stream = archive.extractfile(member)
        if stream is not None:
            reader.read(member.name, stream.read(context.settings.max_file_bytes + 1))


def _check_end(archive: tarfile.TarFile) -> tuple[Notice, ...]:
    """Return the notice of an archive that has no end mark, an empty block, and may be cut short.

    Raises `CorruptDocumentError` where something else stands there: tarfile takes a damaged header for the end.
    """
    assert archive.fileobj is not None
    archive.fileobj.seek(archive.offset)
    block = archive.fileobj.read(tarfile.BLOCKSIZE)
    if block.strip(b"\0"):
        raise CorruptDocumentError("is damaged there; replace it")
    return () if block else (assumed("was taken to be whole, although it has no end mark", "replace it if it is not"),)


def _document(reader: MemberReader, parser: str, more: tuple[Notice, ...] = ()) -> ParsedDocument:
    notices = (*more, *reader.notices())
    if not reader.members:
        reason = f": {notices[0]}" if notices else "; fill it, or exclude it"
        raise EmptyDocumentError(f"holds no document that can be embedded{reason}")
    return ParsedDocument("", {"parser": parser}, notices=notices, members=tuple(reader.members))


def _unpacked(archive: zipfile.ZipFile, member: zipfile.ZipInfo, context: ParseContext) -> bytes:
    """Return a member's bytes, no more than a file may have and it declares. Raises `ItemError`s."""
    parts: list[bytes] = []
    size = 0
    try:
        with archive.open(member) as stream:
            while block := stream.read(READ_BYTES):
                parts.append(block)
                size += len(block)
                if size > context.settings.max_file_bytes:
                    break
    except (zipfile.BadZipFile, zlib.error, NotImplementedError, RuntimeError, EOFError, OSError) as error:
        raise CorruptDocumentError(f"cannot be unpacked ({error}); replace it") from error
    return b"".join(parts)


def _zip_name(member: zipfile.ZipInfo) -> str:
    """Return a member's name. Many programs write UTF-8 without saying so; zipfile takes that for code page 437."""
    if member.flag_bits & _UTF8_NAME:
        return member.filename
    try:
        return member.filename.encode("cp437").decode("utf-8")
    except UnicodeError:
        return member.filename
