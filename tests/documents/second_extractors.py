"""The words of a file by another way than the product's, to hold its text against. Called by `real_files`."""

import re
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Callable
from html.parser import HTMLParser
from io import BytesIO
from xml.etree import ElementTree

_WORD = re.compile(r"[^\W_]+")
_UNSEEN = frozenset(("script", "style", "head", "template", "noscript", "nav", "svg", "select", "iframe"))
_XML_PARTS = {
    ".docx": re.compile(r"word/(document|footnotes|endnotes)\.xml"),
    ".pptx": re.compile(r"ppt/(slides|notesSlides)/[^/]+\.xml"),
    ".odt": re.compile(r"content\.xml"),
    ".odp": re.compile(r"content\.xml"),
}


def words(text: str) -> Counter[str]:
    """Return how often each word stands in a text, without case, accents' spelling and ligatures."""
    return Counter(_WORD.findall(unicodedata.normalize("NFKC", text).casefold()))


def recall(expected: Counter[str], found: Counter[str]) -> float:
    """Return which share of the expected words was found; 1 where none is expected."""
    total = expected.total()
    return (expected & found).total() / total if total else 1.0


def other_words(content: bytes, suffix: str) -> Counter[str] | None:
    """Return the words by the second extractor; None for a format that has none, and for what it cannot read."""
    extract = EXTRACTORS.get(suffix)
    if extract is None:
        return None
    try:
        return words(extract(content))
    except Exception:  # noqa: BLE001 (what the other one refuses says nothing about ours)
        return None


class _Seen(HTMLParser):
    """The character data of a page outside of what no browser shows."""

    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []
        self._unseen: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        if tag in _UNSEEN:
            self._unseen.append(tag)
        self.parts.append(" ")

    def handle_endtag(self, tag: str) -> None:
        if tag in self._unseen:
            while self._unseen.pop() != tag:
                pass
        self.parts.append(" ")

    def handle_data(self, data: str) -> None:
        if not self._unseen:
            self.parts.append(data)


def _html(content: bytes) -> str:
    seen = _Seen()
    seen.feed(content.decode("utf-8"))
    return "".join(seen.parts)


def _pdf(content: bytes) -> str:
    from pdfminer.high_level import extract_text

    return str(extract_text(BytesIO(content)))


def _text(content: bytes) -> str:
    return content.decode("utf-8")


def _zipped_xml(suffix: str) -> Callable[[bytes], str]:
    def extract(content: bytes) -> str:
        with zipfile.ZipFile(BytesIO(content)) as archive:
            names = [name for name in archive.namelist() if _XML_PARTS[suffix].fullmatch(name)]
            blocks = (_blocks(ElementTree.fromstring(archive.read(name))) for name in names)
            return "\n".join(blocks)

    return extract


def _blocks(root: ElementTree.Element) -> str:
    """Return the text below each paragraph; its runs are not divided by spaces."""
    paragraphs = [each for each in root.iter() if each.tag.rpartition("}")[2] in ("p", "h")]
    return "\n".join("".join(each.itertext()) for each in paragraphs)


EXTRACTORS: dict[str, Callable[[bytes], str]] = {
    ".html": _html,
    ".htm": _html,
    ".pdf": _pdf,
    ".txt": _text,
    ".md": _text,
    **{suffix: _zipped_xml(suffix) for suffix in _XML_PARTS},
}
