"""A folder of documents that goes on changing, and the count afterwards: is its collection as the folder is?

Used by `chaos.py`.
"""

import random
from pathlib import Path

from tests.pipeline.requests.installation import Installation
from tests.pipeline.requests.traffic import WORDS, Check

#: Of so many new files, one earlier file is rewritten, and one deleted.
_REWRITTEN = 10
_DELETED = 25
_FILES_PER_FOLDER = 1000


class ChangingFolder:
    """Writes, rewrites and deletes files of one passage each; every version is another one."""

    def __init__(self, folder: Path, seed: int):
        self._folder = folder
        self._random = random.Random(seed)
        self._files: list[Path] = []
        self._written = 0

    def change(self, number: int) -> None:
        """Write so many new files, and change some of the earlier ones."""
        for _ in range(number // _DELETED):
            if self._files:
                self._files.pop(self._random.randrange(len(self._files))).unlink()
        for file in self._random.sample(self._files, min(len(self._files), number // _REWRITTEN)):
            self._write(file)
        for _ in range(number):
            file = self._folder / f"{self._written // _FILES_PER_FOLDER}" / f"{self._written}.txt"
            self._write(file)
            self._files.append(file)

    def check(self, installation: Installation) -> Check:
        """Hold the collection against the folder."""
        expected = {(str(file), 0): file.read_text() for file in self._files}
        found = installation.texts(installation.settings.corpus.collection)
        wrong = sum(1 for key in {*expected, *found} if expected.get(key) != found.get(key))
        return Check("rows of files as the folder has them, each once", len(expected), len(found), wrong)

    def _write(self, file: Path) -> None:
        """Replace a file in one step, as careful programs do: nobody reads half of it."""
        file.parent.mkdir(exist_ok=True)
        part = file.with_name(f".{file.name}")
        part.write_text(f"The {self._random.choice(WORDS)} of entry {self._written}.")
        part.rename(file)
        self._written += 1
