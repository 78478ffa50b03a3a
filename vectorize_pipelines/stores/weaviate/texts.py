"""Texts and names as Weaviate can hold them exactly. Called by the other `weaviate` modules.

Weaviate's index trims white space off both ends of a text, and knows no empty one. So what begins or ends with white
space, is empty or contains U+0000 is written in another form, which sorts and compares as the text does; every other
text is written as it is:

    U+0000        U+0000 1
    end           U+0000 0, where the text is empty or ends with white space
    white space   at the beginning only: the character before it in Unicode, and a digit

Names of collections, aliases and properties are letters, digits and `_`, and are told apart whatever their case; ours
are lower case (a collection's begins with a capital), with `_` as the escape.
"""

import hashlib
import re
from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc

# What Go's unicode.IsSpace says, as ranges.
_SPACES = ((0x09, 0x0D), (0x20, 0x20), (0x85, 0x85), (0xA0, 0xA0), (0x1680, 0x1680), (0x2000, 0x200A),
           (0x2028, 0x2029), (0x202F, 0x202F), (0x205F, 0x205F), (0x3000, 0x3000))  # fmt: skip

#: The first character of a text -> how it is written, and back.
_FIRST: dict[str, str] = {}
for _start, _end in _SPACES:
    _guard = chr(_start - 1)
    _FIRST[_guard] = f"{_guard}1"
    for _space in range(_start, _end + 1):
        _FIRST[chr(_space)] = f"{_guard}{chr(ord('2') + _space - _start)}"
_WRITTEN_FIRST = {written: character for character, written in _FIRST.items()}

_SPACE_CLASS = "".join(f"\\x{{{start:x}}}-\\x{{{end:x}}}" for start, end in _SPACES)
_GUARDS = frozenset(chr(start - 1) for start, _ in _SPACES)
_GUARD_CLASS = "".join(f"\\x{{{ord(guard):x}}}" for guard in sorted(_GUARDS))
#: For Arrow, whose regular expressions are RE2's.
_NEEDS_WRITING = rf"^$|^[{_SPACE_CLASS}{_GUARD_CLASS}]|[{_SPACE_CLASS}]$|\x00"

_SPACE_CHARACTERS = frozenset(chr(code) for start, end in _SPACES for code in range(start, end + 1))
_LAST_CODE_POINT = 0x10FFFF
_SURROGATES = range(0xD800, 0xE000)

_COLLECTION_NAME = re.compile(r"[a-z][a-z0-9_-]*")
_LONGEST_PROPERTY = 120


def written(text: str) -> str:
    """Return the text as it is written; the written texts sort, by code point, as the texts do."""
    form = text.replace("\x00", "\x001")
    if not text or text[-1] in _SPACE_CHARACTERS:
        form += "\x000"
    return _FIRST.get(form[0], form[0]) + form[1:]


def read(form: str) -> str:
    """Return the text that was written so."""
    if "\x00" not in form and form[:1] not in _GUARDS:
        return form
    form = _WRITTEN_FIRST.get(form[:2], form[:2]) + form[2:]
    return form.removesuffix("\x000").replace("\x001", "\x00")


def read_all(forms: Sequence[str | None]) -> list[str | None]:
    """Return the texts that were written so; None stays None."""
    # `read` is not called for what it would only look at: a search does this a hundred times.
    return [form if form is None or ("\x00" not in form and form[:1] not in _GUARDS) else read(form) for form in forms]


def written_column(texts: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return a column of texts as it is written."""
    affected = pc.fill_null(pc.match_substring_regex(texts, _NEEDS_WRITING), False)
    if not pc.any(affected).as_py():
        return texts
    forms = pa.array([written(text) for text in texts.filter(affected).to_pylist()], pa.string())
    return pa.chunked_array([pc.replace_with_mask(texts.combine_chunks(), affected.combine_chunks(), forms)])


def after_prefix(prefix: str) -> str | None:
    """Return the first text, by code point, after all that start with the prefix; None where every later one does."""
    while prefix:
        following = ord(prefix[-1]) + 1
        if following <= _LAST_CODE_POINT:
            return prefix[:-1] + chr(_SURROGATES.stop if following in _SURROGATES else following)
        prefix = prefix[:-1]
    return None


def collection_name(name: str) -> str | None:
    """Return Weaviate's name for a collection or alias of ours; None for a name that none of ours can have."""
    if not _COLLECTION_NAME.fullmatch(name):
        return None
    escaped = name.replace("_", "__").replace("-", "_d")
    return escaped[0].upper() + escaped[1:]


def own_name(weaviate_name: str) -> str | None:
    """Return the name that `collection_name` made this of; None where it made it of none."""
    lowered = weaviate_name[:1].lower() + weaviate_name[1:]
    name = re.sub("_([_d])", lambda match: "_" if match[1] == "_" else "-", lowered)
    return name if collection_name(name) == weaviate_name else None


def property_name(metadata_name: str) -> str:
    """Return the property that holds the terms of one name of metadata: `year` -> `metadata_year`."""
    return f"metadata_{_escaped(metadata_name)}"


def number_property(metadata_name: str) -> str:
    """Return the property for the numbers that texts of one name of metadata are written as: `numbers_price`."""
    return f"numbers_{_escaped(metadata_name)}"


def _escaped(metadata_name: str) -> str:
    escaped = re.sub("[^a-z0-9]", lambda match: "__" if match[0] == "_" else f"_x{ord(match[0]):x}_", metadata_name)
    if len(escaped) > _LONGEST_PROPERTY:
        # JSON may hold half of a surrogate pair.
        escaped = f"_h{hashlib.blake2b(metadata_name.encode('utf-8', 'surrogatepass'), digest_size=16).hexdigest()}"
    return escaped
