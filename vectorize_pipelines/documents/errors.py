"""Reasons why a document cannot be embedded. Run metadata counts these by class, so their names stay as they are.

The caller puts the file's name in front of the message; the message says what is wrong and what to do.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from vectorize_pipelines.errors import CostlyItemError, ItemError

#: In what Python, and pypdf, show of an object: of no use to a reader, and of some to an attacker.
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+|, [0-9]{12,}(?=\))")


class TooLargeError(ItemError):
    """The file is larger than `documents.max_file_bytes`; it was not read."""


class UnsupportedFormatError(ItemError):
    """No parser for this kind of file."""


class NotTextError(ItemError):
    """A file named as text whose bytes are not text in any encoding that we know."""


class UnknownEncodingError(ItemError):
    """Text in an encoding that its bytes do not tell, and that nobody states."""


class CorruptDocumentError(ItemError):
    """The file is damaged, cut short, or is not what its name says."""


class EncryptedDocumentError(ItemError):
    """The document opens with a password only."""


class EmptyDocumentError(ItemError):
    """A document with nothing in it to embed."""


class NoTextLayerError(ItemError):
    """The pages are pictures of text."""


class MissingColumnError(ItemError):
    """A table lacks the column that is to be embedded."""


class DecompressionLimitError(ItemError):
    """A file that is larger, once unpacked, than `documents.max_decompressed_bytes`."""


class TooManyRowsError(ItemError):
    """A table has more rows than `documents.max_rows`."""


class TooManyChunksError(ItemError):
    """A document would be cut into more passages than `documents.max_chunks`."""


class TooMuchMetadataError(ItemError):
    """More metadata of a document, or of a row of a table, than a record may carry."""


class ParseTimeoutError(CostlyItemError):
    """Parsing that took longer than `documents.timeout_seconds`; its process was killed. Or cutting that did."""


class ParserMemoryError(CostlyItemError):
    """Parsing that needed more memory than `documents.memory_bytes`."""


class ParserCrashedError(CostlyItemError):
    """The parser process died, or failed in a way that no parser should."""


@contextmanager
def damage_reported(kind: str) -> Iterator[None]:
    """Turn whatever a parsing library raises over damaged bytes into a `CorruptDocumentError`.

    Put around calls of third-party parsers only: over hostile bytes they raise KeyError, IndexError,
    RecursionError and more that no documentation lists.
    """
    try:
        yield
    except (ItemError, MemoryError):
        raise
    except Exception as error:
        reason = _ADDRESS.sub("", " ".join(str(error).split())) or type(error).__name__
        raise CorruptDocumentError(
            f"cannot be read as {kind} ({reason[:300]}); the file is damaged or cut short, replace it"
        ) from error
