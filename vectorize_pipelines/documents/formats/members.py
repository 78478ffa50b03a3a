"""What lies inside of a document as documents of their own: members of archives, attachments of messages.

Used by `archive`, `mail` and `outlook`.
"""

import posixpath
from collections import Counter
from dataclasses import replace

from vectorize_pipelines.core.notices import Notice, assumed, limited, omitted, within
from vectorize_pipelines.core.temporary_files import is_temporary
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import DecompressionLimitError, UnsupportedFormatError
from vectorize_pipelines.documents.formats.values import clean_text, is_blank, one_line, short_label
from vectorize_pipelines.documents.recognition import SUPPORTED_SUFFIXES, ending
from vectorize_pipelines.documents.types import MEMBER_SEPARATOR, Member
from vectorize_pipelines.errors import ItemError

MAX_DEPTH = 3
KINDS_SHOWN = 5
#: Left out without a word, with what is in it: what macOS adds to archives.
_RESOURCE_FORKS = "__MACOSX"
#: Documents all the same: by what they hold they are refused with a remedy, or are RTF.
_OLD_OFFICE = (".doc", ".dot", ".ppt", ".pps")


class MemberReader:
    """The members of one document, taken one after the other; what cannot be embedded becomes a notice."""

    def __init__(self, context: ParseContext, noun: str):
        """Take what errors call a member: "member", "attachment". Raises `UnsupportedFormatError` too far inside."""
        if context.depth >= MAX_DEPTH:
            raise UnsupportedFormatError(f"lies inside of {MAX_DEPTH} others, which is as far as is read; unpack it")
        self._context = context
        self._noun = noun
        self._other_kinds: Counter[str] = Counter()
        self._notices: list[Notice] = []
        self.members: list[Member] = []

    def is_read(self, name: str) -> bool:
        """Return whether a member of this name is a document; count in the notices what is of another kind."""
        parts = name.replace("\\", "/").split("/")
        if any(part == _RESOURCE_FORKS or (part.startswith(".") and part.strip(".")) for part in parts):
            return False
        if is_temporary(parts[-1]):
            return False
        suffix = ending(parts[-1])
        if suffix not in (*SUPPORTED_SUFFIXES, *_OLD_OFFICE):
            self._other_kinds[suffix] += 1
            return False
        return True

    def begin(self, size: int) -> None:
        """Count a member and its bytes before it is read. Raises `DecompressionLimitError`."""
        unpacked, settings = self._context.unpacked, self._context.settings
        unpacked.members += 1
        unpacked.size += size
        if unpacked.members > settings.max_members:
            raise DecompressionLimitError(
                f"holds more than {settings.max_members:,} files; unpack it, or raise VECTORIZE_DOCUMENTS__MAX_MEMBERS"
            )
        if unpacked.size > settings.max_decompressed_bytes:
            raise DecompressionLimitError(
                f"unpacks to more than {settings.max_decompressed_bytes:,} bytes; unpack it, or raise "
                "VECTORIZE_DOCUMENTS__MAX_DECOMPRESSED_BYTES"
            )

    def read(self, name: str, content: bytes, media_type: str | None = None) -> None:
        """Parse a member, and what is inside of it."""
        if not content.strip():
            return  # there is nothing that could be missed
        name = _safe_name(name)
        assert self._context.parse is not None
        inner = replace(self._context, name=name, media_type=media_type, depth=self._context.depth + 1)
        try:
            document = self._context.parse(content, inner)
        except ItemError as error:
            self.fail(name, error)
            return
        notices = limited(document.notices)
        self._notices += within(name, notices)
        members = document.members
        if not is_blank(document.text):
            self.members.append(Member(name, replace(document, members=(), notices=notices)))
        self.members += [Member(f"{name}{MEMBER_SEPARATOR}{member.name}", member.document) for member in members]

    def fail(self, name: str, error: ItemError) -> None:
        """Note why a member is not embedded."""
        what, _, remedy = str(error).rpartition("; ")
        self._notices.append(
            omitted(
                f"its {self._noun} {_safe_name(name)} is not embedded: it {what or remedy}",
                remedy if what else "replace it, or exclude the file",
            )
        )

    def notices(self) -> tuple[Notice, ...]:
        """Return what is not in the documents, and what was guessed."""
        found = list(self._notices)
        if self._other_kinds:
            kinds = self._other_kinds.most_common(KINDS_SHOWN)
            shown = ", ".join(f"{number} {suffix or 'without an ending'}" for suffix, number in kinds)
            others = self._other_kinds.total() - sum(number for _, number in kinds)
            # As in folders, where they are counted: whoever reads a message misses no picture of a signature.
            found.append(
                assumed(
                    f"{self._other_kinds.total():,} {self._noun}(s) of other kinds are left out: {shown}"
                    + (f", {others} others" if others else ""),
                    "convert those whose text is to be found, and put them beside it",
                )
            )
        return tuple(found)


def _safe_name(name: str) -> str:
    """Return a member's path as a name that leads nowhere: relative, without `..`."""
    cleaned = one_line(clean_text(name.replace("\\", "/"))) or "unnamed"
    return short_label(posixpath.normpath(posixpath.join("/", cleaned)).lstrip("/") or "unnamed")
