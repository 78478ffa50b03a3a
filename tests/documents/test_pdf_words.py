"""Words that a PDF divides between lines."""

from pathlib import Path

import pytest

from tests.documents.builders import pdf
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.formats.pdf import parse_pdf
from vectorize_pipelines.documents.formats.pdf.words import Hyphens, plain_letters
from vectorize_pipelines.settings import DocumentSettings

#: So much of a language that it is known.
ENGLISH = "The harbour office keeps a register of all the boats that enter and leave between sunrise and sunset."
FRENCH = "Le bureau du port tient un registre de tous les bateaux qui entrent et sortent pendant la journée."
GERMAN = "Das Hafenamt führt ein Verzeichnis aller Boote, die zwischen Sonnenaufgang und Abend ein- und ausfahren."

KEPT = [
    ("well", "known"),
    ("price", "determining"),
    ("state", "of-the-art"),
    ("state-of-the", "art"),
    ("long", "term"),
    ("high", "quality"),
    ("low", "cost"),
    ("open", "source"),
    ("real", "time"),
    ("decision", "making"),
    ("user", "friendly"),
    ("self", "employed"),
    ("twenty", "five"),
    ("mother", "in-law"),
    ("so", "called"),
    ("old", "fashioned"),
    ("full", "time"),
    ("cost", "effective"),
    ("water", "soluble"),
    ("left", "handed"),
    ("world", "famous"),
    ("T", "34"),
    ("COVID", "19"),
    ("2019", "2020"),
    ("555", "1234"),
    ("X", "ray"),
    ("e", "mail"),
    ("Jean", "Paul"),
    ("CPU", "bound"),
    ("pre", "1900"),
]
JOINED = [
    ("manu", "facturer"),
    ("infor", "mation"),
    ("pro", "gram"),
    ("some", "thing"),
    ("there", "fore"),
    ("ad", "vertising"),
    ("re", "port"),
    ("in", "formation"),
    ("over", "whelming"),
    ("com", "puter"),
    ("under", "standing"),
    ("de", "velopment"),
    ("inter", "national"),
    ("gov", "ernment"),
    ("with", "out"),
    ("how", "ever"),
    ("be", "cause"),
    ("con", "sider"),
    ("ex", "ample"),
    ("hydro", "electric"),
    ("MANU", "FACTURER"),
    ("para", "graph"),
    ("for", "ward"),
    ("busi", "ness"),
    ("news", "paper"),
    ("any", "one"),
    ("main", "tain"),
    ("tem", "perature"),
    ("phos", "phorylation"),
    ("be", "fore"),
]


def whole(left: str, right: str, rest: str = ENGLISH) -> str:
    text = f"{rest}\n{left}-\n{right}"
    return Hyphens([text]).joined(text).removeprefix(f"{rest}\n")


def test_sixty_words_are_as_they_were_before_they_were_set() -> None:
    assert len(KEPT) + len(JOINED) == 60
    kept = {f"{left}-{right}": whole(left, right) for left, right in KEPT}
    joined = {left + right: whole(left, right) for left, right in JOINED}
    assert {right: came for right, came in {**kept, **joined}.items() if right != came} == {}


@pytest.mark.parametrize(
    ("rest", "left", "right", "expected"),
    [
        (FRENCH, "peut", "être", "peut-être"),
        (FRENCH, "impor", "tance", "importance"),
        (GERMAN, "Hafen", "meister", "Hafenmeister"),
        (GERMAN, "Müller", "Meier", "Müller-Meier"),
    ],
)
def test_each_language_has_its_own_hyphens(rest: str, left: str, right: str, expected: str) -> None:
    assert whole(left, right, rest) == expected


def test_the_document_itself_knows_best() -> None:
    assert whole("well", "known", f"{ENGLISH} Wellknown is wellknown.") == "wellknown"
    assert whole("phos", "pho", f"{ENGLISH} It is phos-pho.") == "phos-pho"


def test_a_dash_and_a_hyphen_before_a_break_of_paragraphs_stay() -> None:
    text = "It is late -\nso late. One-\n\nTwo"
    assert Hyphens([text]).joined(text) == text


def test_ligatures_are_letters_and_soft_hyphens_go() -> None:
    text = plain_letters("o\ufb03ce \ufb01sh \ufb02oor co\u00adoperate man\u00ad\nage")
    assert Hyphens([text]).joined(text) == "office fish floor cooperate manage"


def test_characters_below_each_other_are_a_line() -> None:
    assert plain_letters("港\nの\n登\n録\nA line\n町\nB") == "港の登録\nA line\n町\nB"


@pytest.mark.parametrize("engine", ["pdfium", "pypdf"])
def test_hyphens_of_a_page(engine: str) -> None:
    content = (Path(__file__).parent / "cases" / "pdf" / "hyphen.pdf").read_bytes()
    text = parse_pdf(content, ParseContext(DocumentSettings(pdf_engine=engine), "a.pdf")).text
    assert text.strip() == (
        "The fee depends on the price-determining factors of the year 2019-2020 and on the well-known tariff T-34 for "
        "a state-of-the-art crane. Call 555-1234 about COVID-19 rules. A manufacturer repairs it."
    )


@pytest.mark.parametrize("engine", ["pdfium", "pypdf"])
def test_hyphens_at_the_ends_of_lines_of_a_pdf(engine: str) -> None:
    lines = [ENGLISH, "It is a well-", "known fact that a T-", "34 has a manu-", "facturer, as COVID-", "19 has not."]
    document = parse_pdf(pdf(["\n".join(lines)]), ParseContext(DocumentSettings(pdf_engine=engine), "a.pdf"))
    assert "It is a well-known fact that a T-34 has a manufacturer, as COVID-19 has not." in document.text
