"""What holds for every format: limits, names, and chunks that cut the very text."""

import contextlib
import pickle

import pytest

from tests.documents import builders, packages
from tests.documents.builders import CHINESE, ENGLISH, SETTINGS, settings
from tests.documents.tokenizers_for_tests import minilm
from vectorize_pipelines.documents import SUPPORTED_SUFFIXES, Chunker, errors, parse
from vectorize_pipelines.documents.errors import (
    CorruptDocumentError,
    EmptyDocumentError,
    TooLargeError,
    UnsupportedFormatError,
    damage_reported,
)
from vectorize_pipelines.documents.recognition import CODE_SUFFIXES
from vectorize_pipelines.errors import ItemError

BODY = f"{ENGLISH} {CHINESE}\n\n" * 8
TABLE = [f"{number} {ENGLISH}" for number in range(5)]
FILES = {
    ".txt": BODY.encode(),
    ".md": f"---\ntitle: x\n---\n# One\n{BODY}\n## Two\n{BODY}".encode(),
    ".markdown": f"{BODY}\n# One\n".encode(),
    ".html": f"<h1>One</h1><p>{BODY}</p><h2>Two</h2><div>{BODY}</div>".encode(),
    ".htm": f"<p>{BODY}".encode(),
    ".pdf": builders.pdf([ENGLISH + "\n" + ENGLISH] * 4),
    **dict.fromkeys(
        (".docx", ".docm", ".dotx", ".dotm"),
        builders.docx(("Heading 1", "One"), BODY, [[ENGLISH, CHINESE]] * 9, ("Heading 1", "Two"), BODY),
    ),
    **dict.fromkeys(
        (".pptx", ".pptm", ".potx", ".potm", ".ppsx", ".ppsm"), packages.pptx(*([("One", [ENGLISH], "")] * 4))
    ),
    **dict.fromkeys(
        (".odt", ".ott"), packages.odt(f"<text:h text:outline-level='1'>One</text:h><text:p>{BODY}</text:p>")
    ),
    **dict.fromkeys((".odp", ".otp"), packages.odp(*([("One", ENGLISH, CHINESE)] * 4))),
    ".rtf": rb"{\rtf1\ansi{\stylesheet{\s1 heading 1;}}\pard\s1 One\par\pard " + ENGLISH.encode() + rb"\par}",
    ".epub": packages.epub(f"<h1>One</h1><p>{BODY}</p>", f"<h1>Two</h1><p>{BODY}</p>"),
    ".eml": f"Subject: One\nFrom: ada@example.com\nContent-Type: text/plain; charset=utf-8\n\n{BODY}".encode(),
    ".ipynb": packages.notebook(("markdown", f"# One\n{BODY}"), ("code", "print(1)")),
    ".json": f'{{"one": ["{ENGLISH}", "{CHINESE}"], "two": 2}}'.encode(),
    ".xml": f"<one><two>{ENGLISH}</two><two>{CHINESE}</two></one>".encode(),
    **dict.fromkeys((".yaml", ".yml"), f"one: {ENGLISH}\ntwo: {CHINESE}".encode()),
    ".srt": f"1\n00:00:01,000 --> 00:00:02,000\n{ENGLISH}\n\n2\n00:00:03,000 --> 00:00:04,000\n{CHINESE}\n".encode(),
    ".vtt": f"WEBVTT\n\n00:01.000 --> 00:02.000\n{ENGLISH}\n".encode(),
    **dict.fromkeys(CODE_SUFFIXES, f"# {ENGLISH}\ndef one():\n    return 1\n".encode()),
    ".csv": "\n".join(["text,n", *(f"{line},1" for line in TABLE)]).encode(),
    ".tsv": "\n".join(["n\ttext", *(f"1\t{line}" for line in TABLE)]).encode(),
    ".jsonl": "\n".join(f'{{"text": "{line}"}}' for line in TABLE).encode(),
    ".ndjson": f'{{"text": "{CHINESE * 9}"}}'.encode(),
    ".parquet": builders.parquet({"text": TABLE, "n": [*range(5)]}),
    ".xls": (builders.CASES / "tables" / "cargo.xls").read_bytes(),
    ".ods": (builders.CASES / "tables" / "cargo.ods").read_bytes(),
}
FILES |= dict.fromkeys((".xlt",), FILES[".xls"]) | dict.fromkeys((".ots",), FILES[".ods"])
WORKBOOK = builders.xlsx({"one": [["text", "n"], *([line, 1] for line in TABLE)], "two": [[1, ENGLISH], [2, ENGLISH]]})
FILES |= dict.fromkeys((".xlsx", ".xlsm", ".xltx", ".xltm", ".xlsb"), WORKBOOK)


#: Their documents are members, and have tests of their own.
ARCHIVES = {".zip", ".tar", ".tgz", ".tbz2", ".txz", ".tar.gz", ".tar.bz2", ".tar.xz", ".msg"}


def test_every_supported_format_has_a_file_here() -> None:
    assert set(FILES) == set(SUPPORTED_SUFFIXES) - ARCHIVES


@pytest.mark.parametrize("suffix", FILES)
def test_chunks_of_every_format_cut_the_very_text(suffix: str) -> None:
    document = parse(FILES[suffix], f"folder/name{suffix.upper()}", SETTINGS)
    chunks = list(Chunker(minilm(), 40, 8).chunks(document))
    assert chunks
    assert all(document.text[chunk.start : chunk.end] == chunk.text for chunk in chunks)
    covered = 0
    for chunk in chunks:
        assert not document.text[covered : chunk.start].strip()
        covered = max(covered, chunk.end)
    assert not document.text[covered:].strip()
    if document.pages:
        assert {chunk.page for chunk in chunks} == {1, 2, 3, 4}
    for chunk in chunks if document.sections else []:
        within = [section for section in document.sections if section.start <= chunk.start and chunk.end <= section.end]
        assert chunk.metadata == ({"section": " > ".join(within[0].path)} if within[0].path else {})
    assert document.metadata["parser"]


@pytest.mark.parametrize("suffix", FILES)
def test_an_empty_file_is_empty_in_every_format(suffix: str) -> None:
    with pytest.raises(EmptyDocumentError, match="is empty"):
        parse(b"", f"a{suffix}", SETTINGS)


@pytest.mark.parametrize("suffix", FILES)
def test_a_file_beyond_the_limit_is_refused_in_every_format(suffix: str) -> None:
    with pytest.raises(TooLargeError, match="larger than 10 bytes"):
        parse(FILES[suffix], f"a{suffix}", settings(max_file_bytes=10))


@pytest.mark.parametrize("suffix", FILES)
def test_any_cut_short_file_is_read_or_refused_with_a_reason(suffix: str) -> None:
    content = FILES[suffix]
    for part in range(1, 8):
        with contextlib.suppress(ItemError):  # and nothing else
            assert parse(content[: len(content) * part // 8], f"a{suffix}", SETTINGS).text


@pytest.mark.parametrize("name", ["a.exe", "README", "a.csv.gz", "s3://bucket/a.key"])
def test_unsupported_endings_are_named_beside_the_supported(name: str) -> None:
    with pytest.raises(UnsupportedFormatError, match=r"ending.*\.txt .*\.parquet"):
        parse(b"x", name, SETTINGS)


def test_documents_and_errors_survive_pickling() -> None:
    for suffix, content in FILES.items():
        document = parse(content, f"a{suffix}", SETTINGS)
        assert pickle.loads(pickle.dumps(document)) == document
    kinds = [kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, ItemError)]
    assert len(kinds) > 12
    for kind in kinds:
        copy = pickle.loads(pickle.dumps(kind("why")))
        assert (type(copy), str(copy), copy.retryable) == (kind, "why", kind.retryable)


def test_what_a_library_says_of_damage_has_no_address_of_memory() -> None:
    with pytest.raises(CorruptDocumentError) as raised, damage_reported("PDF"):
        raise ValueError("no page in IndirectObject(2, 0, 140177216416592) <Reader object at 0x7f70680391c0>")
    assert str(raised.value).startswith("cannot be read as PDF (no page in IndirectObject(2, 0) <Reader object>);")
