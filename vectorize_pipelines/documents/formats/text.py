"""Plain text: the encoding of its bytes, and whether they are text at all."""

import codecs
import re

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import NotTextError
from vectorize_pipelines.documents.formats.values import clean_text
from vectorize_pipelines.documents.types import ParsedDocument

DETECTION_SAMPLE_BYTES = 64 * 1024
MAX_CONTROL_SHARE = 0.01
MAX_DAMAGED_SHARE = 0.05
UTF16_NUL_SHARE = 0.4

#: Longest first: the UTF-32 mark begins with the UTF-16 one.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)

#: Encodings that files without a mark are found in; detection chooses among these only, or it guesses wildly.
LEGACY_ENCODINGS = (
    "gb18030", "big5", "shift_jis", "euc_jp", "euc_kr",
    "cp1252", "cp1251", "cp1250", "koi8_r", "cp1253", "cp1255", "cp1256",
)  # fmt: skip

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")


def parse_text(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the text as it stands. Raises `NotTextError`."""
    del context
    return ParsedDocument(decode(content), {"parser": "text"})


def decode(content: bytes, declared: str | None = None) -> str:
    """Return the bytes as text: by byte order mark, `declared` encoding, UTF-8, or the likeliest legacy encoding.

    UTF-8 with a few damaged bytes stays UTF-8, its damage replaced by U+FFFD. Raises `NotTextError` for
    binary content.
    """
    for mark, encoding in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _text_or_refuse(_decoded(content, encoding))
    content = content.removeprefix(codecs.BOM_UTF8)
    for candidate in (_utf16_without_mark(content), declared, "utf-8"):
        text = _decoded(content, candidate)
        if text is not None:
            return _text_or_refuse(text)
    return _text_or_refuse(_damaged_utf8(content) or _legacy(content))


def _decoded(content: bytes, encoding: str | None) -> str | None:
    try:
        return content.decode(encoding) if encoding else None
    except (UnicodeError, LookupError):
        return None


def _text_or_refuse(text: str | None) -> str:
    if text is None or len(_CONTROL.findall(text)) > MAX_CONTROL_SHARE * len(text):
        raise NotTextError("holds binary data, not text; give it the ending of its real format, or exclude it")
    return clean_text(text)


def _utf16_without_mark(content: bytes) -> str | None:
    """Return the UTF-16 that Western text is in: it has a NUL in nearly every other byte, always on the same side."""
    sample = content[:DETECTION_SAMPLE_BYTES]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) < UTF16_NUL_SHARE * len(sample) / 2 or min(even, odd) > MAX_CONTROL_SHARE * len(sample):
        return None
    return "utf-16-be" if even > odd else "utf-16-le"


def _damaged_utf8(content: bytes) -> str | None:
    text = content.decode("utf-8", "replace")
    damaged = text.count("\ufffd")
    intact = sum(map(len, re.findall(r"[^\x00-\x7f\ufffd]+", text)))
    return text if damaged <= MAX_DAMAGED_SHARE * intact else None


def _legacy(content: bytes) -> str | None:
    from charset_normalizer import from_bytes

    if b"\0" in content:  # text in none of these encodings
        return None
    sample = content[:DETECTION_SAMPLE_BYTES]
    if len(sample) < len(content):
        # Below 0x30 no byte is the second half of a character, in any of these encodings.
        sample = sample[: max(sample.rfind(b"\n"), sample.rfind(b" "))]
    best = from_bytes(sample, cp_isolation=list(LEGACY_ENCODINGS)).best()
    for encoding in (best.encoding if best else None, *LEGACY_ENCODINGS):
        text = _decoded(content, encoding)
        if text is not None:
            return text
    return None
