"""SRT and WebVTT: what is said, one line a subtitle, behind the time at which it is said."""

import html

from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, damage_reported
from vectorize_pipelines.documents.formats.text import decode
from vectorize_pipelines.documents.formats.values import clean_text, one_line
from vectorize_pipelines.documents.types import ParsedDocument


def parse_subtitles(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return a line `00:01:02 text` for each subtitle, without their formatting. Raises `CorruptDocumentError`."""
    import pysubs2

    text, notices = decode(content, context)
    kind = "vtt" if text.lstrip("\ufeff \n").startswith("WEBVTT") else "srt"
    with damage_reported("subtitles"):
        subtitles = pysubs2.SSAFile.from_string(text, format_=kind)
        lines = [f"{_time(each.start)} {one_line(_spoken(each.plaintext, kind))}" for each in subtitles]
    if not lines:
        raise CorruptDocumentError(
            "has no subtitles: no line with times such as 00:00:01,000 --> 00:00:02,000; repair it"
        )
    return ParsedDocument("\n".join(lines), {"parser": kind}, notices=notices)


def _spoken(text: str, kind: str) -> str:
    """Return what is said; WebVTT writes `&` and `<` as HTML does, which the library leaves."""
    return clean_text(html.unescape(text) if kind == "vtt" else text)


def _time(milliseconds: int) -> str:
    seconds = max(milliseconds, 0) // 1000
    return f"{seconds // 3600:02}:{seconds // 60 % 60:02}:{seconds % 60:02}"
