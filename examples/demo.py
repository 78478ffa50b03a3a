"""`make demo`: the main job on the example corpus, seen through the commands that a user would type.

Works on a copy of the corpus, because it changes it, and in a collection of its own, `harbour-light-demo`, made anew
each time. Runs in the project's folder wherever it is called, so that it and the commands read the same settings.
"""

import contextlib
import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

from vectorize_pipelines.errors import CollectionNotFoundError
from vectorize_pipelines.settings import PROJECT_ROOT, Settings, load_settings
from vectorize_pipelines.state.home import manifest_file
from vectorize_pipelines.stores import open_store

COLLECTION = "harbour-light-demo"
QUESTIONS = (
    "what do I do when the generator overheats",
    "how do I treat someone with hypothermia",
    "发现火灾怎么办",
)
NEW_DOCUMENT = """# The weather balloon

Every Thursday at noon the observer releases a helium balloon from the north terrace. Its radiosonde reports
temperature and humidity up to thirty kilometres, where the balloon bursts; the parachute is orange.
"""


def say(text: str) -> None:
    print(f"\n\033[1m{text}\033[0m", flush=True)


def vectorize(*arguments: str) -> None:
    print(f"\n$ vectorize {shlex.join(arguments)}", flush=True)
    command = [sys.executable, "-c", "from vectorize_pipelines.cli import main; main()", *arguments]
    subprocess.run(command, check=True)


def start_anew(settings: Settings, corpus: Path) -> None:
    """Forgets an earlier demo and copies the corpus, modification times included."""
    store = open_store(settings.store, settings.home)
    with contextlib.suppress(CollectionNotFoundError):  # the first demo of this installation
        store.drop(store.collection(COLLECTION).physical)
    manifest_file(settings, COLLECTION).unlink(missing_ok=True)
    shutil.rmtree(corpus, ignore_errors=True)
    shutil.copytree(PROJECT_ROOT / "examples" / "corpus", corpus)


def main() -> None:
    started = time.monotonic()
    os.chdir(PROJECT_ROOT)
    settings = load_settings()
    corpus = settings.home / "demo-corpus"
    start_anew(settings, corpus)
    shown = str(corpus.relative_to(PROJECT_ROOT)) if corpus.is_relative_to(PROJECT_ROOT) else str(corpus)

    say("1. A folder of documents becomes a searchable collection: one run of the asset corpus_embeddings.")
    vectorize("ingest", shown, "--collection", COLLECTION)

    say("2. It can be searched at once.")
    for question in QUESTIONS:
        vectorize("search", question, "--collection", COLLECTION, "--limit", "2")

    say("3. A document is added, one is changed, one is deleted; only what changed is encoded again.")
    (corpus / "weather-balloon.md").write_text(NEW_DOCUMENT, encoding="utf-8")
    changed = corpus / "visitors" / "galley-notes.txt"
    changed.write_text(changed.read_text(encoding="utf-8") + "\nOn Sundays there is seaweed soup.\n", encoding="utf-8")
    (corpus / "operations" / "maintenance-log.txt").unlink()
    vectorize("ingest", shown, "--collection", COLLECTION)
    vectorize("search", "what colour is the parachute of the balloon", "--collection", COLLECTION, "--limit", "1")

    say("4. Nothing has changed: nothing is read, nothing is encoded.")
    vectorize("ingest", shown, "--collection", COLLECTION)
    vectorize("collections")

    say(
        f"Done in {time.monotonic() - started:.0f} s. `make dev` opens Dagster's UI with these runs: "
        "http://localhost:3000/dagster"
    )


if __name__ == "__main__":
    main()
