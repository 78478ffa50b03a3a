"""Cutting: what holds for every text and tokenizer, and the boundaries that a reader would choose."""

import itertools
import unicodedata
from collections.abc import Sequence

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from tests.documents.builders import CHINESE, ENGLISH
from tests.documents.tokenizers_for_tests import (
    ByteTokenizer,
    MiniLMTokenizer,
    PatternTokenizer,
    UnevenTokenizer,
    minilm,
)
from vectorize_pipelines.documents.boundaries import CUT, UNSPACED
from vectorize_pipelines.documents.chunking import MAX_CHARACTERS_PER_TOKEN, Chunker, chunker_fingerprint
from vectorize_pipelines.documents.types import Chunk, Page, ParsedDocument, Section, TableRow
from vectorize_pipelines.encoders.base import Tokenizer

WORDS = st.sampled_from(
    (
        *[
            "a",
            "of",
            "fox",
            "jumps.",
            "over,",
            "the",
            "lazy",
            "dog!",
            "Dr.",
            "e.g.",
            "Donaudampfschifffahrtsgesellschaft",
        ],
        *["向量", "数据库。", "「你好」", "，", "これは", "テスト", "ภาษาไทย", "中文mixed文字"],
        *("\n", "\n\n", "\t", "  ", "\x0c", "\x85", "[MASK]", "\u200b", "e\u0301", "👩\u200d👩\u200d👧", "🇩🇪🇫🇷"),
        *("x" * 70, "字" * 60, "=" * 40, "😀" * 30, "a\u0301" * 40),
    )
)
TEXTS = st.one_of(
    st.lists(st.tuples(WORDS, st.sampled_from([" ", "", "\n", ". "])), max_size=80).map(
        lambda parts: "".join(itertools.chain.from_iterable(parts))
    ),
    st.text(st.characters(exclude_categories=["Cs"]), max_size=300),
)
TOKENIZERS = st.sampled_from(["pattern", "spaces", "minilm"])


def tokenizer_named(name: str) -> Tokenizer:
    if name == "minilm":
        return minilm()
    return PatternTokenizer(r"\s*\S{1,4}" if name == "spaces" else r"\S{1,3}")


def cut(text: str, tokenizer: Tokenizer | None = None, maximum: int = 16, overlap: int = 0) -> list[Chunk]:
    return list(Chunker(tokenizer or PatternTokenizer(), maximum, overlap).chunks(ParsedDocument(text, {})))


def texts_of(chunks: list[Chunk]) -> list[str]:
    return [chunk.text for chunk in chunks]


def tokens(tokenizer: Tokenizer, text: str) -> int:
    return len(tokenizer.offsets([text])[0])


def splits_a_word(text: str, position: int) -> bool:
    if position in (0, len(text)) or text[position - 1].isspace() or text[position].isspace():
        return False
    return CUT.match(text, position) is None


def word_around(text: str, position: int) -> str:
    start = end = position
    while start > 0 and not text[start - 1].isspace():
        start -= 1
    while end < len(text) and not text[end].isspace():
        end += 1
    return text[start:end]


def assert_sound(text: str, chunks: list[Chunk], tokenizer: Tokenizer, maximum: int) -> None:
    """What holds for every text: exact cuts, the limit, order, nothing lost."""
    covered = 0
    for number, chunk in enumerate(chunks):
        assert chunk.index == number
        assert text[chunk.start : chunk.end] == chunk.text == chunk.text.strip() != ""
        counted = tokens(tokenizer, chunk.text) + tokenizer.special_tokens
        assert counted <= maximum or len(chunk.text) == 1
        assert chunk.tokens == min(counted, maximum)
        assert not text[covered : chunk.start].strip(), "text between two chunks is lost"
        assert chunk.end > covered, "a chunk with nothing new"
        covered = chunk.end
    assert not text[covered:].strip(), "the end of the text is lost"
    assert [chunk.start for chunk in chunks] == sorted({chunk.start for chunk in chunks})


@given(TEXTS, TOKENIZERS, st.integers(5, 40), st.integers(0, 30))
@example("字" * 100, "pattern", 8, 3)
def test_every_text_is_cut_soundly(text: str, name: str, maximum: int, overlap: int) -> None:
    tokenizer = tokenizer_named(name)
    assert_sound(text, cut(text, tokenizer, maximum, overlap), tokenizer, maximum)


@given(TEXTS, st.integers(1, 40), st.integers(0, 10))
def test_tokenizers_that_are_not_additive_are_counted_as_they_are(text: str, maximum: int, overlap: int) -> None:
    assert_sound(text, cut(text, UnevenTokenizer(), maximum, overlap), UnevenTokenizer(), maximum)


@given(TEXTS, st.integers(2, 40))
def test_characters_of_several_tokens_are_cut_soundly(text: str, maximum: int) -> None:
    assert_sound(text, cut(text, ByteTokenizer(), maximum, 4), ByteTokenizer(), maximum)


@given(TEXTS, st.integers(8, 40), st.integers(0, 20))
def test_words_are_cut_only_where_one_alone_is_too_long(text: str, maximum: int, overlap: int) -> None:
    tokenizer = PatternTokenizer()
    for chunk in cut(text, tokenizer, maximum, overlap):
        for position in (chunk.start, chunk.end):
            if splits_a_word(text, position):
                word = word_around(text, position)
                pieces = [piece for piece in CUT.split(word) if piece]
                assert max(tokens(tokenizer, piece) for piece in pieces) > maximum - tokenizer.special_tokens


@given(TEXTS, st.integers(8, 60), st.integers(0, 40))
def test_overlap_stays_within_bounds_and_begins_with_a_word(text: str, maximum: int, overlap: int) -> None:
    tokenizer = PatternTokenizer(r"\S")  # strictly additive: estimates are exact
    budget = maximum - tokenizer.special_tokens
    for before, after in itertools.pairwise(cut(text, tokenizer, maximum, overlap)):
        if after.start < before.end:
            assert tokens(tokenizer, text[after.start : before.end]) <= min(overlap, budget // 2)
            assert not splits_a_word(text, after.start)


@given(TEXTS)
def test_marks_stay_with_their_letters(text: str) -> None:
    for chunk in cut(text, PatternTokenizer(), 12):
        first = chunk.text[0]
        if chunk.start and not text[chunk.start - 1].isspace() and unicodedata.category(first)[0] == "M":
            run = len(word_around(text, chunk.start))
            assert run > 12, "a combining mark was cut from its letter without need"


def test_blank_text_yields_nothing() -> None:
    assert cut("") == []
    assert cut(" \n\t \u3000 ") == []


def test_short_text_is_one_chunk() -> None:
    [chunk] = cut(f"  {ENGLISH}\n", minilm(), 256, 32)
    assert (chunk.text, chunk.start, chunk.page, chunk.metadata) == (ENGLISH, 2, None, {})


def test_paragraphs_are_preferred_to_sentences() -> None:
    text = "One two three four. Five six seven.\n\nEight nine ten. Eleven twelve."
    assert texts_of(cut(text, PatternTokenizer(r"\S+"), 12)) == [
        "One two three four. Five six seven.",
        "Eight nine ten. Eleven twelve.",
    ]


def test_sentences_are_preferred_to_words() -> None:
    text = "One two three four five. Six seven eight nine ten eleven twelve. Thirteen."
    assert texts_of(cut(text, PatternTokenizer(r"\S+"), 10))[0] == "One two three four five."


@pytest.mark.parametrize("stop", ["Dr. Smith", "e.g. Smith", "J. Smith", "3.14 and", "etc. and"])
def test_these_do_not_end_a_sentence(stop: str) -> None:
    text = f"One two three four five {stop} seven eight nine ten"
    first = cut(text, PatternTokenizer(r"\S+"), 10)[0].text
    assert not first.endswith(stop.split()[0])


def test_chinese_is_cut_at_sentence_ends() -> None:
    chunks = cut(CHINESE * 6, minilm(), 50, 0)
    assert len(chunks) > 3
    assert all(chunk.text.endswith("。") for chunk in chunks)


def test_chinese_without_punctuation_fills_its_chunks() -> None:
    chunks = cut("向量" * 100, minilm(), 52, 0)
    assert [len(chunk.text) for chunk in chunks] == [50, 50, 50, 50]


def test_closing_punctuation_does_not_begin_a_chunk() -> None:
    chunks = cut("一二三四五六，" * 30, minilm(), 9, 0)
    assert not any(chunk.text.startswith("，") for chunk in chunks)
    assert UNSPACED.search(chunks[0].text)


def test_overlap_begins_at_a_sentence_where_one_does_within_reach() -> None:
    text = "Alpha one two three. Beta one two. Gamma one two. Delta one two three."
    first, second = cut(text, PatternTokenizer(r"\S+"), 12, 4)[:2]
    assert first.text == "Alpha one two three. Beta one two. Gamma one two."[: len(first.text)]
    assert second.text.startswith("Gamma")
    assert second.start < first.end


def test_overlap_begins_at_a_word_otherwise() -> None:
    text = " ".join(f"word{number}" for number in range(40))
    chunks = cut(text, PatternTokenizer(r"\S+"), 12, 3)
    assert chunks[1].text.split()[:3] == chunks[0].text.split()[-3:]


def test_a_section_boundary_is_a_chunk_boundary() -> None:
    text = "# A\nalpha\n\n## B\nbeta"
    sections = (Section(0, 11, ("A",)), Section(11, len(text), ("A", "B")))
    chunks = list(Chunker(minilm(), 256, 32).chunks(ParsedDocument(text, {}, sections=sections)))
    assert [(chunk.text, chunk.metadata) for chunk in chunks] == [
        ("# A\nalpha", {"section": "A"}),
        ("## B\nbeta", {"section": "A > B"}),
    ]


def test_rows_are_never_merged_and_carry_their_metadata() -> None:
    rows = (TableRow(0, 5, 0, {"kind": "x"}), TableRow(6, 10, 4, {}))
    chunks = list(Chunker(minilm(), 256, 32).chunks(ParsedDocument("alpha\nbeta", {}, rows=rows)))
    assert [(chunk.text, chunk.metadata) for chunk in chunks] == [
        ("alpha", {"kind": "x", "row": 0}),
        ("beta", {"row": 4}),
    ]


def test_page_is_where_the_chunk_starts() -> None:
    text = "one two three four\n\nfive six seven eight\n\nnine"
    pages = (Page(0, 20, 1), Page(20, 42, 2), Page(42, 46, 3))
    chunks = list(Chunker(PatternTokenizer(r"\S+"), 5, 0).chunks(ParsedDocument(text, {}, pages=pages)))
    assert [(chunk.text.split()[0], chunk.page) for chunk in chunks] == [
        ("one", 1),
        ("four", 1),
        ("five", 2),
        ("eight", 2),
    ]


@pytest.mark.parametrize("text", ["x" * 100_000, "." * 50_000, "字" * 20_000, "e\u0301" * 30_000, "a" + " " * 100_000])
def test_degenerate_texts_are_bounded(text: str) -> None:
    chunks = cut(text, minilm(), 32, 8)
    assert_sound(text, chunks, minilm(), 32)
    assert max(len(chunk.text) for chunk in chunks) <= 30 * MAX_CHARACTERS_PER_TOKEN


def test_work_is_linear_and_streams() -> None:
    """Counted in characters given to the tokenizer, not in seconds."""

    class Counting(MiniLMTokenizer):
        characters = 0

        def offsets(self, texts: Sequence[str]) -> list[list[tuple[int, int]]]:
            self.characters += sum(map(len, texts))
            return super().offsets(texts)

    counting = Counting()
    text = f"{ENGLISH} " * 20_000
    chunks = Chunker(counting, 256, 32).chunks(ParsedDocument(text, {}))
    next(chunks)
    assert counting.characters < 400_000, "the first chunk waits for the whole text"
    assert sum(1 for _ in chunks) > 1000
    assert counting.characters < 1.5 * len(text)


def test_fingerprint_names_all_that_decides_the_cut() -> None:
    assert Chunker(minilm(), 256, 32).fingerprint == "chunker=tokens/1 max=256 overlap=32 parser=2"
    assert chunker_fingerprint(16, 32) == Chunker(minilm(), 16, 32).fingerprint


def test_overlap_is_at_most_half_a_chunk() -> None:
    text = " ".join(f"word{number}" for number in range(40))
    first, second = cut(text, PatternTokenizer(r"\S+"), 12, 32)[:2]
    assert len(text[second.start : first.end].split()) == 5


def test_a_limit_without_room_is_refused() -> None:
    with pytest.raises(ValueError, match="max_tokens is 2"):
        Chunker(minilm(), 2, 0)
