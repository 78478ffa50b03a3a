"""The benchmark `parsing`: how fast documents become text, against the fastest other library that gives the same words.

Both in this process, in turn, over the same documents. What the product finds beside the words (sections, pages, order,
metadata, the language) costs what it costs: the bounds say how much that may be.
"""

import csv
import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from io import BytesIO, StringIO
from pathlib import Path
from xml.sax.saxutils import escape

from benchmarks.figures import Figure
from benchmarks.passages import passages
from tests.documents import builders, packages
from vectorize_pipelines.documents import parse
from vectorize_pipelines.settings import DocumentSettings

ROUNDS = 5
DOCUMENTS = 40
PASSAGES = 40
WORDS = 110

Reader = Callable[[bytes], str]


def _bare_pdf(content: bytes) -> str:
    import pypdfium2

    with pypdfium2.PdfDocument(content) as document:
        return "\n".join(page.get_textpage().get_text_bounded() for page in document)


def _bare_word(content: bytes) -> str:
    import docx

    return "\n".join(paragraph.text for paragraph in docx.Document(BytesIO(content)).paragraphs)


def _bare_html(content: bytes) -> str:
    from selectolax.lexbor import LexborHTMLParser

    body = LexborHTMLParser(content.decode()).body
    return "" if body is None else str(body.text(separator="\n"))


def _bare_csv(content: bytes) -> str:
    import pandas

    return "\n".join(pandas.read_csv(StringIO(content.decode()))["text"].tolist())


def _bare_json_lines(content: bytes) -> str:
    return "\n".join(json.loads(line)["text"] for line in content.splitlines())


def _bare_parquet(content: bytes) -> str:
    import pyarrow.parquet

    return "\n".join(row["text"] for row in pyarrow.parquet.read_table(BytesIO(content)).to_pylist())


def _bare_workbook(content: bytes) -> str:
    from python_calamine import CalamineWorkbook

    workbook = CalamineWorkbook.from_filelike(BytesIO(content))
    rows = (row for name in workbook.sheet_names for row in workbook.get_sheet_by_name(name).to_python())
    return "\n".join(str(row[0]) for row in rows)


def _bare_mail(content: bytes) -> str:
    import email
    from email import policy

    body = email.message_from_bytes(content, policy=policy.default).get_body()
    return "" if body is None else str(body.get_content())


def _pdf(texts: Sequence[str]) -> bytes:
    pages = []
    for text in texts:
        words = text.split()
        pages.append("\n".join(" ".join(words[start : start + 12]) for start in range(0, len(words), 12)))
    return builders.pdf(pages)


def _html(texts: Sequence[str]) -> bytes:
    return ("<!DOCTYPE html><h1>Entries</h1>" + "".join(f"<div><p>{text}</p></div>" for text in texts)).encode()


def _csv(texts: Sequence[str]) -> bytes:
    written = StringIO()
    csv.writer(written).writerows([["text", "n"], *([text, number] for number, text in enumerate(texts))])
    return written.getvalue().encode()


def _json_lines(texts: Sequence[str]) -> bytes:
    return "\n".join(json.dumps({"text": text, "n": number}) for number, text in enumerate(texts)).encode()


def _parquet(texts: Sequence[str]) -> bytes:
    return builders.parquet({"text": list(texts), "n": list(range(len(texts)))})


def _workbook(texts: Sequence[str]) -> bytes:
    return builders.xlsx({"entries": [["text", "n"], *([text, number] for number, text in enumerate(texts))]})


def _mail(texts: Sequence[str]) -> bytes:
    return "\n\n".join(["Subject: x\nContent-Type: text/plain; charset=utf-8", *texts]).encode()


@dataclass(frozen=True)
class Compared:
    """A format.

    make   a document of some texts in it
    other  who else reads it, as the figure names it, and by which function
    least  share of that one's speed which is wanted
    """

    suffix: str
    make: Callable[[Sequence[str]], bytes]
    other: tuple[str, Reader]
    least: float


COMPARED = (
    Compared(".pdf", _pdf, ("pypdfium2", _bare_pdf), 0.3),
    Compared(".docx", lambda texts: builders.docx(*texts), ("python-docx", _bare_word), 1.0),
    Compared(".html", _html, ("selectolax", _bare_html), 0.01),
    Compared(".csv", _csv, ("pandas", _bare_csv), 0.1),
    Compared(".jsonl", _json_lines, ("json", _bare_json_lines), 0.05),
    Compared(".parquet", _parquet, ("pyarrow", _bare_parquet), 0.1),
    Compared(".xlsx", _workbook, ("python-calamine", _bare_workbook), 0.08),
    Compared(".eml", _mail, ("email", _bare_mail), 0.3),
)
#: Formats that nothing else reads to the same text, or that are read by one call of another library.
ALONE: dict[str, Callable[[Sequence[str]], bytes]] = {
    ".txt": lambda texts: "\n\n".join(texts).encode(),
    ".md": lambda texts: "\n\n".join(["# Entries", *texts]).encode(),
    ".pptx": lambda texts: packages.pptx(*(("Entry", [text], "") for text in texts)),
    ".odt": lambda texts: packages.odt("".join(f"<text:p>{escape(text)}</text:p>" for text in texts)),
    ".epub": lambda texts: packages.epub(*(f"<p>{escape(text)}</p>" for text in texts)),
}


def run(place: Path) -> list[Figure]:
    """Measure each format."""
    del place
    texts = passages(DOCUMENTS * PASSAGES, WORDS)
    groups = [texts[start : start + PASSAGES] for start in range(0, len(texts), PASSAGES)]
    for suffix, make in ALONE.items():
        contents = [make(group) for group in groups]
        seconds = statistics.median(_seconds(_ours(suffix), contents) for _ in range(ROUNDS))
        print(f"    parsing {suffix}: {_rate(contents, seconds)}")
    return [_figure(compared, [compared.make(group) for group in groups]) for compared in COMPARED]


def _figure(compared: Compared, contents: Sequence[bytes]) -> Figure:
    name, other = compared.other
    rounds = [(_seconds(_ours(compared.suffix), contents), _seconds(other, contents)) for _ in range(ROUNDS)]
    share = statistics.median(theirs / own for own, theirs in rounds)
    rate = _rate(contents, statistics.median(own for own, _ in rounds))
    measured = f"{share:.0%} of {name}'s speed ({rate})"
    return Figure(f"parsing {compared.suffix}", measured, f"≥ {compared.least:.0%}", share >= compared.least)


def _rate(contents: Sequence[bytes], seconds: float) -> str:
    return f"{len(contents) / seconds:,.0f} documents/s, {sum(map(len, contents)) / 1e6 / seconds:.2f} MB/s"


def _ours(suffix: str) -> Reader:
    settings = DocumentSettings()
    return lambda content: parse(content, f"a{suffix}", settings).text


def _seconds(read: Reader, contents: Sequence[bytes]) -> float:
    begun = time.perf_counter()
    for content in contents:
        if not read(content).strip():
            raise ValueError("a document without text")
    return time.perf_counter() - begun
