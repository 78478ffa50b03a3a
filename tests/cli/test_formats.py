"""A folder of files in thirty formats, from `vectorize ingest` to the answers of questions."""

import shutil
from contextlib import closing
from pathlib import Path

import pytest

from tests.commands import Vectorize
from tests.documents.golden.files import articles, saved
from vectorize_pipelines.settings import PROJECT_ROOT

#: Of the questions, so many have the right document within the first three hits.
LEAST_FOUND = 0.95


@pytest.mark.slow
def test_questions_find_documents_of_every_format(vectorize_here: Vectorize, tmp_path: Path) -> None:
    from vectorize_pipelines.encoders import load_encoder
    from vectorize_pipelines.settings import load_settings
    from vectorize_pipelines.stores import open_store

    folder = tmp_path / "docs"
    shutil.copytree(PROJECT_ROOT / "examples" / "corpus", folder / "others")
    for article in articles():
        (folder / article.file).write_bytes(saved(article))
    done = vectorize_here("ingest", folder, "--collection", "golden", "--json")
    assert (done.code, done.json["failures"], done.json["notices"]) == (0, [], [])
    settings = load_settings()
    encoder = load_encoder(settings.models.text, cache_directory=settings.home / "encoders")
    missed = []
    with closing(open_store(settings.store, settings.home)) as store:
        for article in articles():
            for question in article.questions:
                hits = store.search("golden", encoder.encode([question], "query")[0], 3).to_pylist()
                if not any(Path(hit["source_id"]).name == article.file for hit in hits):
                    missed.append((question, [hit["uri"] for hit in hits]))
    asked = sum(len(article.questions) for article in articles())
    assert asked == 60
    assert len(missed) <= (1 - LEAST_FOUND) * asked, missed
