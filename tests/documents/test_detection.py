"""The detector of encodings is as often right as docs/documents.md says, and refuses rather than garbles."""

from collections import Counter

import pytest

from benchmarks.encodings import measure, ours
from tests.documents.encoding_samples import LANGUAGES, samples
from vectorize_pipelines.documents.formats.detection import detect
from vectorize_pipelines.documents.formats.text import telling_bytes

#: Fewer samples than the table in the documentation is made from, so its shares are not met to the percent.
COUNTS = {40: 4, 200: 2, 2000: 1}
#: By length, the shares that are right at the least and wrong at the most.
BOUNDS = {40: (0.83, 0.01), 200: (0.93, 0.0), 2000: (0.98, 0.0)}


@pytest.fixture(scope="module")
def measured() -> dict[tuple[str, int], Counter[str]]:
    return measure(ours, samples(COUNTS))


def test_the_samples_are_as_many_languages_and_encodings_as_promised() -> None:
    assert len(LANGUAGES) >= 25
    assert len({language for languages in LANGUAGES.values() for language in languages}) >= 12


@pytest.mark.parametrize("length", COUNTS)
def test_the_detector_is_as_right_as_documented(measured: dict[tuple[str, int], Counter[str]], length: int) -> None:
    counts = measured["", length]
    right, wrong = BOUNDS[length]
    assert counts["right"] >= right * counts.total(), counts
    assert counts["wrong"] <= wrong * counts.total(), counts


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("РЫБАК ВЫШЕЛ В МОРЕ РАНО УТРОМ. ВЕТЕР БЫЛ СИЛЬНЫЙ, ВОЛНЫ ВЫСОКИЕ.", "windows-1251"),
        ("РЫБАК ВЫШЕЛ В МОРЕ РАНО УТРОМ. ВЕТЕР БЫЛ СИЛЬНЫЙ, ВОЛНЫ ВЫСОКИЕ.", "koi8-r"),
        ("Rüzgâr şiddetliydi, dalgalar yükseldi; ağları boş çıktı.", "windows-1254"),
        ("Le café était fermé à cause de la grève, où êtes-vous allé ?", "windows-1252"),
        ("Ο ψαράς βγήκε στη θάλασσα νωρίς το πρωί.", "windows-1253"),
        ("漁師は早朝に海へ出た。波が高かった。", "shift_jis"),
    ],
)
def test_other_texts_too(text: str, encoding: str) -> None:
    codec = {"shift_jis": "cp932", "koi8-r": "koi8-r"}.get(encoding, encoding.replace("windows-", "cp"))
    guess = detect(text.encode(codec))
    assert guess is not None
    assert (guess.encoding, guess.is_certain_enough) == (encoding, True)


def test_what_two_encodings_read_as_well_is_not_certain() -> None:
    guess = detect("東京都千代田区".encode("euc-jp"))
    assert guess is None or not guess.is_certain_enough


def test_the_lines_that_tell_are_found_wherever_they_are() -> None:
    content = b"plain\n" * 50_000 + "größer\n".encode("cp1252") + b"x" * 300_000 + b" \xe9 " + b"y" * 300_000
    sample = telling_bytes(content, 10_000)
    assert b"gr\xf6\xdfer\n" in sample
    assert b"\xe9" in sample
    assert len(sample) <= 10_000
    assert telling_bytes(b"ascii only\n" * 10) == b""
