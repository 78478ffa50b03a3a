"""Loads models in a process of its own and encodes a text with each: `python -m tests.attacks.loading CACHE NAME…`.

Prints a JSON object: by name what it raised, as class and message, or null where the model was used.
"""

import json
import sys
from pathlib import Path

from vectorize_pipelines.encoders import load_encoder
from vectorize_pipelines.errors import VectorizeError


def main() -> None:
    """Loads each model."""
    cache, *names = sys.argv[1:]
    found: dict[str, list[str] | None] = {}
    for name in names:
        engine = "open_clip" if "clip" in name else "auto"
        try:
            encoder = load_encoder(name, "cpu", engine, cache_directory=Path(cache))
            encoder.encode(["a boat"])
            encoder.close()
            found[name] = None
        except VectorizeError as error:
            found[name] = [type(error).__name__, str(error)]
    print(json.dumps(found))


if __name__ == "__main__":
    main()
