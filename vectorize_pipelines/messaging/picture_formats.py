"""The formats of pictures that messages may have in them: those that models take and browsers show."""

_BEGINNINGS = (
    (b"\xff\xd8\xff", "image/jpeg"),
    (b"\x89PNG\r\n\x1a\n", "image/png"),
)
_RIFF, _WEBP = b"RIFF", b"WEBP"


def media_type_of(content: bytes) -> str | None:
    """Return the media type of a JPEG, PNG or WebP file by its first bytes; None for any other content."""
    if content[:4] == _RIFF and content[8:12] == _WEBP:
        return "image/webp"
    return next((media_type for beginning, media_type in _BEGINNINGS if content.startswith(beginning)), None)
