"""Cutting of a parsed document into chunks that fit the encoder. Called by the pipeline for every document.

How a stretch of text (a section, a row, or all of a text without either) is cut:

1. `_Atoms` reads it as a sequence of words, or of characters where a script has no spaces, with an estimate of
   each one's tokens. Words repeat, so that most estimates come from a dictionary.
2. `Chunker._plan` takes as many as fit, steps back to the best boundary, and begins the next chunk some atoms
   earlier, for the overlap.
3. `Chunker._verified` counts the tokens of a chunk as it will be embedded, many in one call, and divides the rare
   one that is too long. Where the words' counts are known to add up, as with BERT's tokenizer, it need not.

So text is tokenized at most once, whatever its length (twice, where words are long or not divided by spaces), and
only a few blocks of it are held at a time.
"""

import re
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import NamedTuple

from vectorize_pipelines.core.items import JsonValue
from vectorize_pipelines.documents import boundaries
from vectorize_pipelines.documents.parsing import PARSER_VERSION
from vectorize_pipelines.documents.types import ROW_NUMBER, Chunk, ParsedDocument
from vectorize_pipelines.encoders.base import Tokenizer

#: Part of the fingerprint: raise it when the same document is cut differently than before.
CHUNKER_VERSION = 1

#: WordPiece counts a word of any length that it does not know as one token; no chunk is longer than this.
MAX_CHARACTERS_PER_TOKEN = 16
#: A longer run without whitespace is data rather than a word, and cut hard.
MAX_WORD_CHARACTERS = 1024

BLOCK_CHARACTERS = 32 * 1024
#: Of the whitespace before a word, the tokens of so much are counted.
MAX_SPACE_CHARACTERS = 16
#: Longer words are looked at more closely: each may have to be cut.
MAX_PLAIN_CHARACTERS = 48
MAX_KNOWN_CHARACTERS = 1_000_000
CONTEXT = "a"
#: How far back from a long run's limit a place to cut is looked for.
CUT_SEARCH = 64
VERIFIED_TOGETHER = 128

_RUN = re.compile(r"\S++")
#: Whitespace to Python, but control characters to tokenizers, which join the words on both sides of them.
_JOINING_SPACE = re.compile(r"[\x0b\x0c\x1c-\x1f\x85]")

#: (start, end, metadata of its chunks) of a part of the text that is cut on its own.
_Stretch = tuple[int, int, dict[str, JsonValue]]
_Offsets = Sequence[tuple[int, int]]


@dataclass(frozen=True, slots=True)
class _Candidate:
    """A chunk not yet verified: `fresh` is where the text begins that no chunk before it has.

    tokens  its tokens where they are known for certain, else None
    """

    start: int
    fresh: int
    end: int
    metadata: Mapping[str, JsonValue]
    tokens: int | None = None


def chunker_fingerprint(max_tokens: int, overlap_tokens: int) -> str:
    """Return `Chunker.fingerprint` of a chunker with these arguments, without loading a tokenizer for it."""
    return f"chunker=tokens/{CHUNKER_VERSION} max={max_tokens} overlap={overlap_tokens} parser={PARSER_VERSION}"


class Chunker:
    """A cutter of documents into chunks of at most `max_tokens` tokens, special tokens included.

    Up to `overlap_tokens` are repeated from one chunk to the next, from the start of a sentence or at least of a
    word; never more than half of a chunk, so that each has more that is new. Raises `ValueError` where `max_tokens`
    leaves no room beside the special tokens.

    A chunk never spans two rows, nor two sections. Words are cut only where one alone is too long. A single
    character of more tokens than fit becomes a chunk nevertheless, and the encoder truncates it.
    One instance serves one thread.
    """

    def __init__(self, tokenizer: Tokenizer, max_tokens: int, overlap_tokens: int) -> None:
        self._budget = max_tokens - tokenizer.special_tokens
        if self._budget < 1:
            raise ValueError(f"max_tokens is {max_tokens}, but the model adds {tokenizer.special_tokens} of its own")
        self._tokenizer = tokenizer
        self._max_tokens = max_tokens
        self._fingerprint = chunker_fingerprint(max_tokens, overlap_tokens)
        self._overlap = min(overlap_tokens, self._budget // 2)
        self._max_characters = self._budget * MAX_CHARACTERS_PER_TOKEN
        self._words = _WordTokens(tokenizer, self._budget)

    @property
    def fingerprint(self) -> str:
        """All that decides how a document is cut, apart from the tokenizer: equal ones give equal chunks."""
        return self._fingerprint

    def chunks(self, document: ParsedDocument) -> Iterator[Chunk]:
        """Yield the document's chunks in order, made as they are taken."""
        page_starts = [page.start for page in document.pages]
        verified = self._verified(document.text, self._candidates(document))
        for index, (chunk, tokens) in enumerate(verified):
            number = bisect_right(page_starts, chunk.start)
            page = document.pages[number - 1] if number else None
            yield Chunk(
                index=index,
                text=document.text[chunk.start : chunk.end],
                start=chunk.start,
                end=chunk.end,
                page=page.number if page else None,
                tokens=min(tokens + self._tokenizer.special_tokens, self._max_tokens),
                metadata={**chunk.metadata, **page.metadata} if page and page.metadata else chunk.metadata,
            )

    def _candidates(self, document: ParsedDocument) -> Iterator[_Candidate]:
        text = document.text
        for stretches in _in_blocks(_stretches(document)):
            readers = [_Atoms(text, start, end, self._words, self._max_characters) for start, end, _ in stretches]
            if len(readers) > 1:
                self._words.learn([word for atoms in readers for word in atoms.words()])
            for atoms, (_, _, metadata) in zip(readers, stretches, strict=True):
                for first, fresh, last, tokens in self._plan(atoms):
                    certain = self._tokenizer.counts_add_up and atoms.whole_words(first, last)
                    yield _Candidate(first, fresh, last, metadata, tokens if certain else None)

    def _plan(self, atoms: "_Atoms") -> Iterator[tuple[int, int, int, int]]:
        """Yield (start, fresh, end, tokens) of the chunks that one stretch is to be cut into, by estimated tokens."""
        fresh = 0
        while True:
            atoms.read(self._budget)
            if fresh == len(atoms.starts):
                return
            stop = atoms.fitting(self._budget)
            if stop <= fresh:  # no room for the next word beside the overlap
                atoms.forget(fresh)
                fresh = 0
                continue
            if stop < len(atoms.starts):
                stop = self._best_stop(atoms, fresh, stop)
            yield atoms.starts[0], atoms.starts[fresh], atoms.ends[stop - 1], atoms.totals[stop] - atoms.totals[0]
            if stop == len(atoms.starts):
                return
            first = self._overlap_start(atoms, stop)
            atoms.forget(first)
            fresh = stop - first

    def _best_stop(self, atoms: "_Atoms", fresh: int, stop: int) -> int:
        """Return the best boundary at or before `stop` that leaves the chunk at least half full."""
        half = bisect_left(atoms.totals, atoms.totals[0] + self._budget // 2, 0, stop)
        low = max(half, fresh + 1)
        for pattern in boundaries.PREFERRED:
            found = 0
            for end in boundaries.ends(pattern, atoms.text, atoms.starts[low - 1], atoms.starts[stop]):
                found = bisect_left(atoms.starts, end, 0, stop)
            if found >= low:
                return found
        return stop

    def _overlap_start(self, atoms: "_Atoms", stop: int) -> int:
        """Return the first atom of the next chunk: a sentence's or a word's within reach of the overlap, or `stop`."""
        if not self._overlap:
            return stop
        first = bisect_left(atoms.totals, atoms.totals[stop] - self._overlap, 1, stop)
        while first < stop and not boundaries.starts_a_word(atoms.text, atoms.starts[first]):
            first += 1
        if first == stop:
            return stop
        for pattern in (boundaries.PARAGRAPH, boundaries.SENTENCE):
            for end in boundaries.ends(pattern, atoms.text, atoms.starts[first - 1], atoms.ends[stop - 1]):
                sentence = bisect_left(atoms.starts, end)
                if first <= sentence < stop:
                    return sentence
        return first

    def _verified(self, text: str, candidates: Iterator[_Candidate]) -> Iterator[tuple[_Candidate, int]]:
        """Yield (chunk, tokens) of the candidates that fit, and of the parts of those that do not.

        Each begins after the one before.
        """
        latest = -1
        while batch := list(islice(candidates, VERIFIED_TOGETHER)):
            pending = deque(self._counted(text, batch))
            while pending:
                candidate, tokens, offsets = pending.popleft()
                fits = tokens <= self._budget or candidate.end - candidate.start == 1
                # The overlap may reach back over all of the last part of a chunk that had to be divided.
                if fits and candidate.start > latest:
                    latest = candidate.start
                    yield candidate, tokens
                else:
                    parts = self._counted(text, _divided(text, candidate, offsets or self._offsets(text, candidate)))
                    pending.extendleft(reversed(parts))

    def _counted(self, text: str, candidates: Sequence[_Candidate]) -> list[tuple[_Candidate, int, _Offsets]]:
        """Return each candidate with its tokens and, where these had to be counted, their offsets."""
        uncertain = [candidate for candidate in candidates if candidate.tokens is None]
        texts = [text[candidate.start : candidate.end] for candidate in uncertain]
        offsets = iter(self._tokenizer.offsets(texts) if texts else ())
        counted: list[tuple[_Candidate, int, _Offsets]] = []
        for candidate in candidates:
            if candidate.tokens is not None:
                counted.append((candidate, candidate.tokens, ()))
            else:
                own = next(offsets)
                counted.append((candidate, len(own), own))
        return counted

    def _offsets(self, text: str, candidate: _Candidate) -> _Offsets:
        return self._tokenizer.offsets([text[candidate.start : candidate.end]])[0]


def _in_blocks(stretches: Iterator[_Stretch]) -> Iterator[list[_Stretch]]:
    """Yield small stretches together, up to a block, so that one call of the tokenizer serves them all."""
    block: list[_Stretch] = []
    characters = 0
    for start, end, metadata in stretches:
        if block and characters + end - start > BLOCK_CHARACTERS:
            yield block
            block, characters = [], 0
        block.append((start, end, metadata))
        characters += end - start
    yield block


def _stretches(document: ParsedDocument) -> Iterator[_Stretch]:
    """Yield the stretches that are each cut on their own."""
    if document.rows:
        columns = frozenset[str]().union(*(row.metadata for row in document.rows))
        name = next((name for name in ROW_NUMBER if name not in columns), None)
        for row in document.rows:
            yield row.start, row.end, {**row.metadata, name: row.number} if name else dict(row.metadata)
    elif document.sections:
        for section in document.sections:
            yield section.start, section.end, {"section": " > ".join(section.path)} if section.path else {}
    else:
        yield 0, len(document.text), {}


def _divided(text: str, candidate: _Candidate, offsets: _Offsets) -> list[_Candidate]:
    """Return a chunk that proved too long: without its overlap, or, where it has none, in two."""
    start, end, metadata = candidate.fresh, candidate.end, candidate.metadata
    if candidate.start < start:
        return [_Candidate(start, start, end, metadata)]
    middle = start + offsets[len(offsets) // 2][0]
    cut = boundaries.cut_within(text, start, middle, end)
    left = start + len(text[start:cut].rstrip())
    right = end - len(text[cut:end].lstrip())
    return [_Candidate(start, start, left, metadata), _Candidate(right, right, end, metadata)]


class _Atoms:
    """The pieces between which a stretch of text may be cut, from the current chunk's first one on.

    `starts` and `ends` are their characters. `totals[i]` is the estimated tokens before atom i, counted from
    anywhere: only differences mean something. It has one entry more, after the last atom.
    """

    def __init__(self, text: str, start: int, end: int, words: "_WordTokens", max_characters: int) -> None:
        self.text = text
        self.starts: list[int] = []
        self.ends: list[int] = []
        self.totals: list[int] = [0]
        self._words = words
        self._max_characters = max_characters
        self._span = start, end
        self._pieces: list[int] = []
        self._runs = self._all_runs()
        self._exhausted = False

    def read(self, budget: int) -> None:
        """Read on until there is more than fits into one chunk, or nothing more."""
        while not self._exhausted and self.fitting(budget) == len(self.starts):
            self._read_block()

    def fitting(self, budget: int) -> int:
        """Return how many atoms, from the first, fit into one chunk: at least one, if there is any."""
        if not self.starts:
            return 0
        by_tokens = bisect_right(self.totals, self.totals[0] + budget) - 1
        by_characters = bisect_right(self.ends, self.starts[0] + self._max_characters)
        return max(1, min(by_tokens, by_characters))

    def forget(self, count: int) -> None:
        """Drop the first atoms."""
        del self.starts[:count], self.ends[:count], self.totals[:count]

    def whole_words(self, start: int, end: int) -> bool:
        """Return whether the atoms that start within `text[start:end]` are all words that were counted as such."""
        return bisect_left(self._pieces, start) == bisect_left(self._pieces, end)

    def words(self) -> list[str]:
        """Return every word, with the whitespace before it, of the whole stretch."""
        return [self.text[space:end] for space, _, end in self._all_runs()]

    def _all_runs(self) -> Iterator[tuple[int, int, int]]:
        return _runs(self.text, *self._span, min(MAX_WORD_CHARACTERS, self._max_characters))

    def _read_block(self) -> None:
        runs: list[tuple[int, int, int]] = []
        characters = 0
        for run in self._runs:
            runs.append(run)
            characters += run[2] - run[1]
            if characters >= BLOCK_CHARACTERS:
                break
        else:
            self._exhausted = True
        counted = self._words.count([self.text[space:end] for space, _, end in runs])
        starts, ends, totals = self.starts, self.ends, self.totals
        total = totals[-1]
        for (_, start, end), tokens in zip(runs, counted, strict=True):
            if isinstance(tokens, int):
                total += tokens
                starts.append(start)
                ends.append(end)
                totals.append(total)
                continue
            for first, last, count in tokens:
                total += count
                starts.append(start + first)
                ends.append(start + last)
                totals.append(total)
                self._pieces.append(start + first)


def _runs(text: str, start: int, end: int, max_characters: int) -> Iterator[tuple[int, int, int]]:
    """Yield (space, start, end) of the runs without whitespace; `space` is where the whitespace before one begins."""
    position = start
    for match in _RUN.finditer(text, start, end):
        first, space = match.start(), position
        position = match.end()
        if first - space > MAX_SPACE_CHARACTERS:
            space = first - MAX_SPACE_CHARACTERS
        while position - first > max_characters:
            limit = first + max_characters
            cuts = [cut for cut in boundaries.ends(boundaries.CUT, text, limit - CUT_SEARCH, limit) if cut > first]
            cut = cuts[-1] if cuts else boundaries.safe_cut(text, first, limit)
            yield space, first, cut
            space = first = cut
        yield space, first, position


class _Piece(NamedTuple):
    """A part of a run, in characters from the run's start."""

    start: int
    end: int
    tokens: int


def _is_plain(word: str) -> bool:
    """Return whether a word, with the whitespace before it, can be counted as one."""
    return (
        len(word) <= MAX_PLAIN_CHARACTERS and not boundaries.UNSPACED.search(word) and not _JOINING_SPACE.search(word)
    )


class _WordTokens:
    """Estimates of how many tokens each word of a text takes. What is a word of the language is counted once."""

    def __init__(self, tokenizer: Tokenizer, budget: int) -> None:
        self._tokenizer = tokenizer
        self._budget = budget
        self._known: dict[str, int] = {}
        self._pieces: dict[str, list[_Piece]] = {}
        self._characters = 0

    def count(self, words: Sequence[str]) -> list[int | list[_Piece]]:
        """Return for each word, with whitespace before it, its tokens, or its pieces where it can or must be cut."""
        self.learn(words)
        return [self._known[word] if word in self._known else self._pieces[word] for word in words]

    def learn(self, words: Sequence[str]) -> None:
        """Ask the tokenizer, in two calls at most, for those of the words that are not known yet."""
        unknown = {word for word in words if word not in self._known and word not in self._pieces}
        if self._characters > MAX_KNOWN_CHARACTERS:
            self._known, self._pieces, self._characters = {}, {}, 0
            unknown = set(words)
        self._characters += sum(map(len, unknown))
        plain = [word for word in unknown if _is_plain(word)]
        if plain:
            self._count_whole(plain)
        if divided := [word for word in unknown if word not in self._known]:
            self._count_pieces(divided)

    def _count_whole(self, words: Sequence[str]) -> None:
        # A word is counted behind another one: many tokenizers have a way of their own with a text's first word.
        contexts = [CONTEXT if word[0].isspace() else "" for word in words]
        texts = [context + word for context, word in zip(contexts, words, strict=True)]
        for word, context, offsets in zip(words, contexts, self._tokenizer.offsets(texts), strict=True):
            tokens = sum(end > len(context) for _, end in offsets) if context else len(offsets)
            if tokens <= self._budget:
                self._known[word] = tokens

    def _count_pieces(self, words: Sequence[str]) -> None:
        runs = [word.lstrip() for word in words]
        for word, run, offsets in zip(words, runs, self._tokenizer.offsets(runs), strict=True):
            self._pieces[word] = self._divide(run, sorted(start for start, _ in offsets))

    def _divide(self, run: str, token_starts: list[int]) -> list[_Piece]:
        cuts = [match.start() for match in boundaries.CUT.finditer(run)]
        edges = [0, *(cut for cut in cuts if 0 < cut < len(run)), len(run)]
        return [piece for start, end in pairwise(edges) for piece in self._fitting(run, start, end, token_starts)]

    def _fitting(self, run: str, start: int, end: int, token_starts: list[int]) -> Iterator[_Piece]:
        """Yield `run[start:end]` as one piece, or cut hard into several where it alone has too many tokens."""
        while True:
            first, last = bisect_left(token_starts, start), bisect_left(token_starts, end)
            if last - first <= self._budget or end - start == 1:
                yield _Piece(start, end, last - first)
                return
            cut = boundaries.safe_cut(run, start, max(token_starts[first + self._budget], start + 1))
            yield _Piece(start, cut, bisect_left(token_starts, cut) - first)
            start = cut
