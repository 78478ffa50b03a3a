"""Plain text, and the decoding that every format of text begins with: which encoding its bytes are in.

`decode` follows the encoding standard where something says what the encoding is, and asks `detection` where nothing
does. Called by the parsers of text, Markdown, HTML and tables.
"""

import codecs
import json
import re
import unicodedata
from dataclasses import dataclass
from email.message import Message
from pathlib import PurePosixPath
from typing import NamedTuple
from urllib.parse import urlsplit

from vectorize_pipelines.core.encodings import REPLACEMENT, decode_as, encoding_name, standard_name
from vectorize_pipelines.core.notices import Notice, assumed
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import NotTextError, UnknownEncodingError
from vectorize_pipelines.documents.formats.detection import detect
from vectorize_pipelines.documents.formats.values import clean_text
from vectorize_pipelines.documents.types import ParsedDocument

SAMPLE_BYTES = 64 * 1024
DETECTION_BYTES = 4 * 1024
#: Of a line, before the first byte beyond ASCII.
BYTES_BEFORE = 200
MAX_CONTROL_SHARE = 0.01
MAX_DAMAGED_SHARE = 0.05
UTF16_NUL_SHARE = 0.4
#: Letters, digits, spaces and punctuation, of the characters of text.
MIN_TEXT_SHARE = 0.95
MAX_BLOCKS = 4

#: Longest first: the UTF-32 mark begins with the UTF-16 one.
BYTE_ORDER_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16le"),
    (codecs.BOM_UTF16_BE, "utf-16be"),
    (codecs.BOM_UTF8, "utf-8"),
)

#: Marks of encodings that use no byte beyond ASCII, and what Python calls them.
ESCAPES = (
    (b"\x1b$)C", "iso2022_kr"),
    (b"\x1b$@", "iso-2022-jp"),
    (b"\x1b$B", "iso-2022-jp"),
    (b"\x1b(I", "iso-2022-jp"),
)
#: The usual characters of GB 2312 have first bytes up to this one, in HZ.
LAST_USUAL_LEAD = 0x57
MIN_HZ_PAIRS, MIN_HZ_SHARE = 4, 0.8
_HZ = re.compile(rb"~\{((?:[\x21-\x7d][\x21-\x7e])+)~\}")

_CONTROL = re.compile(r"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_CONTROL_BYTES = re.compile(rb"[\x00-\x08\x0e-\x1a\x1c-\x1f\x7f]")
_NOT_ASCII = re.compile(r"[^\x00-\x7f\ufffd]+")


class Decoded(NamedTuple):
    """The text of some bytes, and what was assumed in reading them."""

    text: str
    notices: tuple[Notice, ...] = ()


@dataclass(frozen=True, slots=True)
class Declaration:
    """An encoding that somebody names: a name from `encoding_name`, and who does ("its <meta>")."""

    encoding: str
    source: str


def parse_text(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the text as it stands. Raises what `decode` does."""
    text, notices = decode(content, context)
    return ParsedDocument(text, {"parser": "text"}, notices=notices)


def decode(content: bytes, context: ParseContext, declared: Declaration | None = None) -> Decoded:
    """Return the bytes as text with `\\n` line ends.

    What counts is, in this order: a byte order mark, the setting `documents.encodings`, the carrier's charset (HTTP's
    header), `declared`, which is what the content says of itself, and what the bytes themselves tell. Text with a few
    damaged bytes stays in its encoding, the damage replaced by U+FFFD. What is not certain is in the notices.

    Raises `NotTextError` for binary content and where a stated encoding does not fit, and `UnknownEncodingError`.
    """
    for mark, marked in BYTE_ORDER_MARKS:
        if content.startswith(mark):
            return _checked(_in_encoding(content[len(mark) :], Declaration(marked, "its byte order mark")))
    if stated := stated_encoding(context):
        return _checked(_as_stated(content, stated))
    if unmarked := _utf16_without_mark(content):
        found = _in_encoding(content, Declaration(unmarked, "its NUL bytes"))
        if found is not None:
            return _checked(found)
    for named in (carrier_encoding(context.media_type), declared):
        if named is not None and (found := _as_declared(content, named)) is not None:
            return _checked(found)
    return _checked(_undeclared(content, context))


def stated_encoding(context: ParseContext) -> Declaration | None:
    """Return the encoding that the settings state for the document's path: that of the last pattern that matches it.

    A pattern that does not begin with `/` may match anywhere in the path: where a folder begins is not known here.
    """
    if not context.settings.encodings:
        return None
    import pathspec

    path = urlsplit(context.name).path if "://" in context.name else context.name
    path = str(PurePosixPath("/", path)).lstrip("/")
    for pattern, label in reversed(context.settings.encodings.items()):
        anywhere = pattern if pattern.startswith(("/", "**/")) else f"**/{pattern}"
        if path and pathspec.GitIgnoreSpec.from_lines([anywhere]).match_file(path):
            encoding = encoding_name(label)
            assert encoding is not None  # the settings have checked it
            return Declaration(encoding, f"documents.encodings ({pattern})")
    return None


def carrier_encoding(media_type: str | None) -> Declaration | None:
    """Return the encoding that a content type's parameter `charset` names; None where it names none that is known."""
    if media_type is None:
        return None
    header = Message()
    header["content-type"] = media_type
    charset = header.get_param("charset")
    encoding = standard_name(charset) if isinstance(charset, str) else None
    return None if encoding is None else Declaration(encoding, "its content type")


def _as_stated(content: bytes, stated: Declaration) -> Decoded:
    found = _in_encoding(content, stated)
    if found is None:
        raise NotTextError(
            f"is not {stated.encoding}, which {stated.source} says of it; correct VECTORIZE_DOCUMENTS__ENCODINGS"
        )
    return _with_doubt(found, content, stated, "correct VECTORIZE_DOCUMENTS__ENCODINGS if it is UTF-8")


def _as_declared(content: bytes, declared: Declaration) -> Decoded | None:
    if declared.encoding == REPLACEMENT:
        raise UnknownEncodingError(
            f"is in an encoding, by {declared.source}, that browsers refuse to read since it can hide content; convert "
            f"it to UTF-8, or state what it is in {_setting('…')}"
        )
    found = _in_encoding(content, declared)
    remedy = f"if it is UTF-8, correct {declared.source}, or state it in {_setting('utf-8')}"
    return None if found is None else _with_doubt(found, content, declared, remedy)


def _with_doubt(found: Decoded, content: bytes, named: Declaration, remedy: str) -> Decoded:
    """Add a notice where the bytes are valid UTF-8 although somebody says that they are something else."""
    if named.encoding == "utf-8" or content.isascii() or _strictly(content, "utf-8") is None:
        return found
    doubt = assumed(f"was read as {named.encoding}, as {named.source} says, although its bytes are valid UTF-8", remedy)
    return Decoded(found.text, (*found.notices, doubt))


def _in_encoding(content: bytes, named: Declaration) -> Decoded | None:
    """Return the bytes in this encoding, a few of them damaged at most; None where more are."""
    if (text := _strictly(content, named.encoding)) is not None:
        return Decoded(text)
    if named.encoding == "utf-8" and _is_too_damaged(decode_as(telling_bytes(content), "utf-8", "replace")):
        return None  # without a look at the rest, which may be large
    text = decode_as(content, named.encoding, "replace")
    if _is_too_damaged(text):
        return None
    damaged = text.count("\ufffd")
    count = "a character is" if damaged == 1 else f"{damaged:,} characters are"
    notice = assumed(
        f"{count} damaged, for {named.encoding} (as {named.source} says), and read as \ufffd", "replace the file"
    )
    return Decoded(text, (notice,))


def _is_too_damaged(text: str) -> bool:
    return text.count("\ufffd") > MAX_DAMAGED_SHARE * sum(map(len, _NOT_ASCII.findall(text)))


def _strictly(content: bytes, encoding: str) -> str | None:
    try:
        return decode_as(content, encoding)
    except UnicodeError:
        return None


def _checked(found: Decoded | None) -> Decoded:
    if found is None or len(_CONTROL.findall(found.text)) > MAX_CONTROL_SHARE * len(found.text):
        raise _binary()
    return Decoded(clean_text(found.text), found.notices)


def _binary() -> NotTextError:
    return NotTextError("holds binary data, not text; give it the ending of its real format, or exclude it")


def _utf16_without_mark(content: bytes) -> str | None:
    """Return the UTF-16 that Western text is in: it has a NUL in nearly every other byte, always on the same side."""
    sample = content[:SAMPLE_BYTES]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if max(even, odd) < UTF16_NUL_SHARE * len(sample) / 2 or min(even, odd) > MAX_CONTROL_SHARE * len(sample):
        return None
    return "utf-16be" if even > odd else "utf-16le"


def _undeclared(content: bytes, context: ParseContext) -> Decoded | None:
    """Return the text of bytes of which nothing says what they are; None where they are no text."""
    if b"\0" in content and (found := _in_utf16(content, context)):
        return found
    if content.isascii():
        return _with_escapes(content, context) or Decoded(content.decode("ascii"))
    if found := _in_encoding(content, Declaration("utf-8", "most of it")):
        return found
    if b"\0" in content:
        return None  # text in none of the others
    sample = telling_bytes(content)
    if len(_CONTROL_BYTES.findall(sample)) > MAX_CONTROL_SHARE * len(sample):
        return None
    guess = detect(sample)
    if guess is None or not guess.is_certain_enough:
        raise UnknownEncodingError(
            f"is in an encoding that its bytes do not tell{f' ({guess.doubt})' if guess else ''}; convert it to UTF-8, "
            f"or state its encoding in {_setting(guess.encoding if guess else '…', context)}"
        )
    found = _in_encoding(content, Declaration(guess.encoding, "its letters"))
    return found and _noted(found, guess.encoding, guess.reason, context)


def _in_utf16(content: bytes, context: ParseContext) -> Decoded | None:
    """Return text whose only NULs are the halves of spaces and line ends, as in Cyrillic and Chinese; else None."""
    sample = content[:SAMPLE_BYTES]
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if len(content) % 2 or (even and odd):
        return None
    encoding = "utf-16be" if even else "utf-16le"
    text = _strictly(content, encoding)
    if text is None or not _is_text_of_a_script(text[:SAMPLE_BYTES], is_utf8=_strictly(content, "utf-8") is not None):
        return None
    return _noted(Decoded(text), encoding, "its NUL bytes", context)


def _is_text_of_a_script(text: str, *, is_utf8: bool) -> bool:
    """Return whether what was read as UTF-16 is text, and not other bytes with a stray NUL.

    Two letters of ASCII make a Chinese character, of many blocks of Unicode: what is UTF-8 too may have a few only.
    """
    ascii_ = [character for character in text if character < "\x80"]
    return (
        2 * sum(map(str.isspace, ascii_)) >= len(ascii_)
        and sum(map(_is_of_text, text)) >= MIN_TEXT_SHARE * len(text)
        and not (is_utf8 and len({ord(character) >> 8 for character in text}) > MAX_BLOCKS)
    )


def _is_of_text(character: str) -> bool:
    return character.isalnum() or character.isspace() or unicodedata.category(character)[0] in "MP"


def _noted(found: Decoded, encoding: str, reason: str, context: ParseContext) -> Decoded:
    """Add what the encoding was guessed from."""
    return Decoded(found.text, (*found.notices, _guessed(encoding, reason, context)))


def _with_escapes(content: bytes, context: ParseContext) -> Decoded | None:
    """Return the text of ASCII bytes that switch to other characters by escape sequences; None where these do not."""
    encoding = next((name for mark, name in ESCAPES if mark in content), None)
    if encoding is None and _is_hz(content[:SAMPLE_BYTES]):
        encoding = "hz"
    if encoding is None or (text := _strictly(content, encoding)) is None:
        return None
    return _noted(Decoded(text), encoding, "its escape sequences", context)


def _is_hz(sample: bytes) -> bool:
    """Return whether what stands between `~{` and `~}` are pairs of bytes of usual Chinese characters and not words."""
    leads = b"".join(match[1][0::2] for match in _HZ.finditer(sample))
    return len(leads) >= MIN_HZ_PAIRS and sum(lead <= LAST_USUAL_LEAD for lead in leads) >= MIN_HZ_SHARE * len(leads)


def _guessed(encoding: str, reason: str, context: ParseContext) -> Notice:
    return assumed(
        f"its encoding was taken for {encoding}, by {reason}",
        f"if that is wrong, convert it to UTF-8, or state its encoding in {_setting('…', context)}",
    )


def _setting(encoding: str, context: ParseContext | None = None) -> str:
    """Return the setting with an example of its value for this document."""
    suffix = "" if context is None else PurePosixPath(urlsplit(context.name).path).suffix
    value = json.dumps({f"*{suffix}": encoding}, ensure_ascii=False)
    return f"documents.encodings (VECTORIZE_DOCUMENTS__ENCODINGS={value})"


def telling_bytes(content: bytes, limit: int = DETECTION_BYTES) -> bytes:
    """Return the lines with bytes beyond ASCII, `limit` bytes of them at most: the others tell nothing.

    Of a long line what stands around its first such byte; it may end within a character.
    """
    lines: list[bytes] = []
    position = size = 0
    while size < limit and (first := _BEYOND_ASCII.search(content, position)):
        start = max(position, content.rfind(b"\n", position, first.start()) + 1, first.start() - BYTES_BEFORE)
        end = content.find(b"\n", first.start()) + 1 or len(content)
        lines.append(content[start : min(end, start + limit - size)])
        size += len(lines[-1])
        position = start + len(lines[-1])
    return b"".join(lines)


_BEYOND_ASCII = re.compile(rb"[\x80-\xff]")
