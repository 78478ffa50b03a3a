"""`chunk` in a request: for single texts alone."""

import json
from typing import Any

import pytest

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.messaging.messages import InvalidMessageError, Origin, Request, decode


def _decoded(modality: Modality, **fields: Any) -> Request:
    found = decode(json.dumps({"task_id": "one", **fields}).encode(), None, Origin("t", 0, 0, 0), modality)
    assert isinstance(found, Request)
    return found


@pytest.mark.parametrize("chunk", [True, False, None])
def test_a_text_says_whether_it_is_cut(chunk: bool | None) -> None:
    assert _decoded(Modality.TEXT, task_type="text_vectorization", data="a text", chunk=chunk).chunk is chunk


@pytest.mark.parametrize(
    ("modality", "task_type", "data", "said"),
    [
        (Modality.TEXT, "batch_vectorization", ["a", "b"], "chunk: is for text_vectorization: the rows of a batch"),
        (Modality.IMAGE, "image_vectorization", "https://h/a.png", "chunk: is for text_vectorization: an image"),
        (Modality.DOCUMENT, "document_vectorization", "https://h/a.md", "a document is always cut"),
        (Modality.TEXT, "text_vectorization", "a text", "chunk: "),
    ],
)
def test_elsewhere_it_is_refused(modality: Modality, task_type: str, data: Any, said: str) -> None:
    chunk = "yes" if task_type == "text_vectorization" else True
    with pytest.raises(InvalidMessageError) as refused:
        _decoded(modality, task_type=task_type, data=data, chunk=chunk)
    assert said in str(refused.value)
