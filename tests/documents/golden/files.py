"""The articles of `articles.yaml`, each saved in its format. Called by the test of retrieval over all formats."""

import json
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from xml.sax.saxutils import escape

import yaml

from tests.documents import builders, packages

_MANIFEST = "urn:oasis:names:tc:opendocument:xmlns:manifest:1.0"
_PLACE = Path(__file__).with_name("articles.yaml")


@dataclass(frozen=True)
class Article:
    """A short text of invented facts, and questions that it alone answers."""

    name: str
    format: str
    title: str
    paragraphs: list[str]
    questions: list[str]

    @property
    def file(self) -> str:
        """The name of its file."""
        return f"{self.name}.{self.format}"

    @property
    def lines(self) -> list[str]:
        """The title and the paragraphs."""
        return [self.title, *self.paragraphs]

    @property
    def rows(self) -> list[str]:
        """The paragraphs as rows of a table, each of which has to be understood by itself."""
        return [f"{self.title}: {each}" for each in self.paragraphs]


def articles() -> list[Article]:
    """Return all of them."""
    return [Article(**fields) for fields in yaml.safe_load(_PLACE.read_text(encoding="utf-8"))]


def saved(article: Article) -> bytes:
    """Return the article in its format."""
    return _WRITERS[article.format](article)


def _plain(article: Article) -> bytes:
    return "\n\n".join(article.lines).encode()


def _markdown(article: Article) -> bytes:
    return "\n\n".join([f"# {article.title}", *article.paragraphs]).encode()


def _tagged(article: Article, title: str, paragraph: str) -> str:
    return title.format(escape(article.title)) + "".join(paragraph.format(escape(each)) for each in article.paragraphs)


def _html(article: Article) -> bytes:
    return f"<!DOCTYPE html><title>{article.title}</title>{_tagged(article, '<h1>{}</h1>', '<p>{}</p>')}".encode()


def _pdf(article: Article) -> bytes:
    words = " ".join(article.lines).split()
    return builders.pdf(["\n".join(" ".join(words[start : start + 12]) for start in range(0, len(words), 12))])


def _word(article: Article) -> bytes:
    return builders.docx(("Heading 1", article.title), *article.paragraphs)


def _slides(article: Article) -> bytes:
    return packages.pptx(*((article.title, [each], "") for each in article.paragraphs))


def _open_text(article: Article) -> bytes:
    return packages.odt(_tagged(article, "<text:h text:outline-level='1'>{}</text:h>", "<text:p>{}</text:p>"))


def _open_slides(article: Article) -> bytes:
    return packages.odp(*((article.title, each, "") for each in article.paragraphs))


def _rich_text(article: Article) -> bytes:
    return (r"{\rtf1\ansi " + "".join(rf"\pard {each}\par" for each in article.lines) + "}").encode("ascii")


def _book(article: Article) -> bytes:
    return packages.epub(_tagged(article, "<h1>{}</h1>", "<p>{}</p>"))


def _mail(article: Article) -> bytes:
    headers = f"Subject: {article.title}\nFrom: ada@example.com\nContent-Type: text/plain; charset=utf-8"
    return "\n\n".join([headers, *article.paragraphs]).encode()


def _notebook(article: Article) -> bytes:
    return packages.notebook(("markdown", f"# {article.title}"), *(("markdown", each) for each in article.paragraphs))


def _json(article: Article) -> bytes:
    return json.dumps({"title": article.title, "facts": article.paragraphs}).encode()


def _yaml(article: Article) -> bytes:
    return yaml.safe_dump({"title": article.title, "facts": article.paragraphs}, width=1000).encode()


def _xml(article: Article) -> bytes:
    return f"<article>{_tagged(article, '<title>{}</title>', '<fact>{}</fact>')}</article>".encode()


def _code(article: Article) -> bytes:
    return "\n\n".join([f'"""{article.title}.', *article.paragraphs, '"""\n\ndef main() -> None:\n    pass']).encode()


def _sql(article: Article) -> bytes:
    return "\n".join([*(f"-- {line}" for line in article.lines), "select 1;"]).encode()


def _separated(delimiter: str) -> Callable[[Article], bytes]:
    def save(article: Article) -> bytes:
        rows = [f'{number}{delimiter}"{row}"' for number, row in enumerate(article.rows)]
        return "\n".join([f"n{delimiter}text", *rows]).encode()

    return save


def _json_lines(article: Article) -> bytes:
    return "\n".join(json.dumps({"text": row}) for row in article.rows).encode()


def _parquet(article: Article) -> bytes:
    return builders.parquet({"text": article.rows})


def _workbook(article: Article) -> bytes:
    return builders.xlsx({"facts": [["n", "text"], *([number, row] for number, row in enumerate(article.rows))]})


def _sheet(article: Article) -> bytes:
    cell = "<table:table-cell office:value-type='string'><text:p>{}</text:p></table:table-cell>"
    rows = "".join(
        f"<table:table-row>{cell.format(escape(each))}</table:table-row>" for each in ["text", *article.rows]
    )
    body = f"<office:spreadsheet><table:table table:name='facts'>{rows}</table:table></office:spreadsheet>"
    kind = "application/vnd.oasis.opendocument.spreadsheet"
    entry = f"<m:file-entry m:full-path='/' m:media-type='{kind}'/>"
    return packages.package(
        {
            "mimetype": kind,
            "META-INF/manifest.xml": f"<m:manifest xmlns:m='{_MANIFEST}'>{entry}</m:manifest>",
            "content.xml": f"<office:document-content {packages.OPEN_DOCUMENT}><office:body>{body}</office:body>"
            "</office:document-content>",
        }
    )


def _subtitles(head: str, second: str) -> Callable[[Article], bytes]:
    def save(article: Article) -> bytes:
        times = [f"{second.format(number)} --> {second.format(number + 1)}" for number in range(len(article.lines))]
        return (head + "\n\n".join(map("\n".join, zip(times, article.lines, strict=True)))).encode()

    return save


def _zip(article: Article) -> bytes:
    return packages.package({"notes/article.md": _markdown(article)})


def _tar(article: Article) -> bytes:
    buffer, content = BytesIO(), _plain(article)
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        member = tarfile.TarInfo("notes/article.txt")
        member.size = len(content)
        archive.addfile(member, BytesIO(content))
    return buffer.getvalue()


_WRITERS: dict[str, Callable[[Article], bytes]] = {
    "csv": _separated(","),
    "docm": _word,
    "docx": _word,
    "eml": _mail,
    "epub": _book,
    "htm": _html,
    "html": _html,
    "ipynb": _notebook,
    "json": _json,
    "jsonl": _json_lines,
    "markdown": _markdown,
    "md": _markdown,
    "odp": _open_slides,
    "ods": _sheet,
    "odt": _open_text,
    "parquet": _parquet,
    "pdf": _pdf,
    "pptx": _slides,
    "py": _code,
    "rtf": _rich_text,
    "sql": _sql,
    "srt": _subtitles("", "00:00:{:02},000"),
    "tar": _tar,
    "tsv": _separated("\t"),
    "txt": _plain,
    "vtt": _subtitles("WEBVTT\n\n", "00:{:02}.000"),
    "xlsx": _workbook,
    "xml": _xml,
    "yaml": _yaml,
    "zip": _zip,
}
