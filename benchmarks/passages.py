"""Text to measure with: the example corpus's own sentences, shuffled into as many documents as are wanted."""

import random
import re
from pathlib import Path

from benchmarks.figures import PROJECT_ROOT

SEED = 7


def sentences() -> list[str]:
    """Sentences of the English Markdown and text files of the example corpus."""
    corpus = PROJECT_ROOT / "examples" / "corpus"
    files = [*sorted(corpus.rglob("*.md")), *sorted(corpus.rglob("*.txt"))]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files if ".zh." not in file.name)
    found = re.split(r"(?<=[.!?])\s+|\n{2,}", text)
    return [" ".join(sentence.split()) for sentence in found if len(sentence) > 30]


def passages(count: int, words: int) -> list[str]:
    """`count` passages of about `words` words, each different."""
    random_numbers = random.Random(SEED)
    pool = sentences()
    made = []
    for n in range(count):
        passage = [f"Entry {n}."]
        while sum(len(sentence.split()) for sentence in passage) < words:
            passage.append(random_numbers.choice(pool))
        made.append(" ".join(passage))
    return made


def write_documents(folder: Path, count: int, passages_each: int, words: int) -> None:
    """`count` text files of `passages_each` passages, a paragraph each."""
    folder.mkdir(parents=True)
    made = passages(count * passages_each, words)
    for n in range(count):
        own = made[n * passages_each : (n + 1) * passages_each]
        (folder / f"{n:06}.txt").write_text("\n\n".join(own), encoding="utf-8")


def passages_of_tokens(count: int, cache_directory: Path) -> list[str]:
    """`count` different passages of 155 tokens on average and 20 to 250, as cutting documents to 256 tokens gives.

    Most are near the limit and the tail is towards the short ones. None has to be cut again, special tokens included.
    `cache_directory` is where the tokenizer is kept. Fewer passages are the first of more.
    """
    from vectorize_pipelines.encoders import load_tokenizer
    from vectorize_pipelines.settings import DEFAULT_TEXT_MODEL

    random_numbers = random.Random(SEED)
    lengths = [round(random_numbers.triangular(20, 250, 195)) for _ in range(count)]
    long_enough = passages(count, words=300)
    offsets = load_tokenizer(DEFAULT_TEXT_MODEL, cache_directory=cache_directory).offsets(long_enough)
    return [text[: tokens[length - 1][1]] for text, tokens, length in zip(long_enough, offsets, lengths, strict=True)]
