"""Text to measure with: the example corpus's own sentences, shuffled into as many documents as are wanted."""

import random
import re
from pathlib import Path

#: By this file's place: a GPU machine that only measures encoders need not have what the settings import.
CORPUS = Path(__file__).resolve().parent.parent / "examples" / "corpus"

SEED = 7


def sentences() -> list[str]:
    """Sentences of the English Markdown and text files of the example corpus."""
    files = [*sorted(CORPUS.rglob("*.md")), *sorted(CORPUS.rglob("*.txt"))]
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
