"""Pictures are told by their first bytes."""

import pytest

from tests.messaging.assessed import picture
from vectorize_pipelines.messaging.picture_formats import media_type_of


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP"])
def test_what_models_and_browsers_take_is_known(kind: str) -> None:
    assert media_type_of(picture((1, 2, 3), kind)) == f"image/{kind.lower()}"


@pytest.mark.parametrize("content", [b"", b"RIFF", b"RIFF1234WAVE", b"GIF89a", b"<svg/>", b"\x89PN", b"\xff\xd8"])
def test_nothing_else_is(content: bytes) -> None:
    assert media_type_of(content) is None
