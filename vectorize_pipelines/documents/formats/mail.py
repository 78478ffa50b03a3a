"""EML: a message's best body; its headers as metadata; its attachments as documents of their own."""

import re
from collections.abc import Iterable
from dataclasses import replace
from email import message_from_bytes, policy
from email.message import EmailMessage, Message
from email.utils import parsedate_to_datetime

from vectorize_pipelines.core.notices import Notice, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, EncryptedDocumentError, damage_reported
from vectorize_pipelines.documents.formats.html import parse_html
from vectorize_pipelines.documents.formats.members import MemberReader
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.text import Decoded, carrier_encoding, decode
from vectorize_pipelines.documents.formats.values import clean_text, json_fields, one_line, short_label
from vectorize_pipelines.documents.recognition import FORMATS, SUPPORTED_SUFFIXES, ending
from vectorize_pipelines.documents.types import ParsedDocument

#: Of a message's text and its HTML, which say the same, the text is taken unless it has less than this share.
LEAST_SHARE_OF_TEXT = 0.5
_ENCRYPTED = re.compile(r"multipart/encrypted|application/(?:x-)?pkcs7-mime", re.IGNORECASE)
_HEADERS = (("to", "To"), ("cc", "Cc"))
#: Types of text that no reader is shown as such: "text/calendar" and others.
_NO_PROSE = ("calendar", "css", "vcard")
_ENCODED = ("base64", "quoted-printable")


def parse_eml(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return subject and body, headers as metadata, attachments as members.

    Raises `EncryptedDocumentError`, `CorruptDocumentError`, `DecompressionLimitError`.
    """
    with damage_reported("EML"):
        message = message_from_bytes(content, policy=policy.default)
        if not message.keys() or not {"from", "subject", "date", "to", "received"} & {key.lower() for key in message}:
            raise CorruptDocumentError("has no headers of a message; save it again from the mail program")
        assert isinstance(message, EmailMessage)
        if _is_encrypted(message):
            raise EncryptedDocumentError("is encrypted; save it decrypted from the mail program, or exclude it")
        bodies, attached = _parts(message)
        subject = one_line(clean_text(_header(message, "Subject")))
        reader = MemberReader(context, "attachment") if attached else None
        body, notices = _body(bodies, context)
        for number, part in enumerate(attached, start=1):
            assert reader is not None
            _attach(part, number, reader)
    return message_document(subject, body, _metadata(message, subject), "eml", notices, reader)


def message_document(
    subject: str,
    body: str,
    metadata: dict[str, str | None],
    parser: str,
    notices: tuple[Notice, ...],
    reader: MemberReader | None,
) -> ParsedDocument:
    """Return a message as a document: its subject is its title, and a heading above its body."""
    builder = OutlineBuilder()
    builder.heading(short_label(subject), 0)
    builder.block(body)
    text, sections = builder.build()
    members = tuple(reader.members) if reader else ()
    notices += reader.notices() if reader else ()
    return ParsedDocument(text, json_fields(metadata | {"parser": parser}), sections, notices=notices, members=members)


def best_body(text: str, html: str, context: ParseContext) -> tuple[str, tuple[Notice, ...]]:
    """Return the text of a message that has one or both, and what was noted in reading it."""
    if not html.strip():
        return text.strip(), ()
    # What is text by now has the encoding that it gets here, whatever the page declares.
    inner = replace(context, media_type="text/html; charset=utf-8")
    page = parse_html(b"\xef\xbb\xbf" + html.encode("utf-8", "replace"), inner)
    if len(text.split()) >= LEAST_SHARE_OF_TEXT * len(page.text.split()) and text.strip():
        return text.strip(), ()
    return page.text, page.notices


def attachment_name(name: str, media_type: str, number: int) -> str:
    """Return the name of an attachment, with an ending that tells its format where its content type does."""
    name = one_line(clean_text(name)) or f"attachment {number}"
    if ending(name) in SUPPORTED_SUFFIXES:
        return name
    suffixes = [each.suffixes[0] for each in FORMATS if media_type.lower() in each.media_types]
    # Plain text is what mail programs call whatever they do not know.
    return name + suffixes[0] if suffixes and (media_type != "text/plain" or not ending(name)) else name


def _is_encrypted(message: EmailMessage) -> bool:
    kind = message.get_content_type()
    signed = str(message.get_param("smime-type", "")).lower() == "signed-data"
    return bool(_ENCRYPTED.fullmatch(kind)) and not signed


def _parts(message: EmailMessage) -> tuple[list[list[Message]], list[Message]]:
    """Return the parts that are the message's text, together those of which a reader sees one; and what is attached."""
    bodies: list[list[Message]] = []
    attached: list[Message] = []
    pending: list[tuple[Message, str, list[Message] | None]] = [(message, "", None)]
    while pending:
        part, outer, alternatives = pending.pop()
        kind = part.get_content_type()
        is_inline = part.get_content_disposition() != "attachment"
        if kind.startswith("multipart/"):
            if kind == "multipart/alternative" and alternatives is None:
                alternatives = []
                bodies.append(alternatives)
            inner = part.get_payload()
            if isinstance(inner, list):
                pending += [(each, kind, alternatives) for each in reversed(inner) if isinstance(each, Message)]
        elif is_inline and not part.get_filename() and kind.startswith("text/") and not kind.endswith(_NO_PROSE):
            if alternatives is None:
                bodies.append([part])
            else:
                alternatives.append(part)
        elif is_inline and (outer == "multipart/related" or (kind.endswith(_NO_PROSE) and alternatives is not None)):
            continue  # the pictures and styles of a page; an invitation that the text beside it tells, too
        else:
            attached.append(part)
    return bodies, attached


def _body(bodies: Iterable[Iterable[Message]], context: ParseContext) -> tuple[str, tuple[Notice, ...]]:
    """Return the text of a message, of parts that say the same the best one, and what was noted in reading it."""
    found = [_best_of(parts, context) for parts in bodies]
    return "\n\n".join(text for text, _ in found if text), tuple(notice for _, notices in found for notice in notices)


def _best_of(parts: Iterable[Message], context: ParseContext) -> tuple[str, tuple[Notice, ...]]:
    texts: list[Decoded] = []
    pages: list[Decoded] = []
    for part in parts:
        text, notices = _text(part, context)
        if part.get_content_type() == "text/html":
            pages.append(Decoded(text, notices))
        else:
            texts.append(Decoded(_flowed(part, text), notices))
    body, notices = best_body("\n\n".join(each.text for each in texts), "\n".join(each.text for each in pages), context)
    return body, (*notices, *(notice for each in (*texts, *pages) for notice in each.notices))


def _text(part: Message, context: ParseContext) -> Decoded:
    """Return the text of a part in the encoding that its own header names.

    A message that came as text, within a request, has one encoding, but for what is in base64 or quoted-printable.
    """
    payload = part.get_payload(decode=True)
    if not isinstance(payload, bytes) or not payload.strip():
        return Decoded("")
    is_as_it_came = str(part.get("content-transfer-encoding", "")).strip().lower() not in _ENCODED
    came_as_text = is_as_it_came and carrier_encoding(context.media_type) is not None
    return decode(payload, context if came_as_text else replace(context, media_type=str(part.get("content-type", ""))))


def _flowed(part: Message, text: str) -> str:
    """Return a text whose lines were only broken to send it, where it says so, in lines as they were written."""
    if str(part.get_param("format", "")).lower() != "flowed":
        return text
    joined: list[str] = []
    flows = False
    without_space = str(part.get_param("delsp", "")).lower() == "yes"
    for line in text.split("\n"):
        line = line.removeprefix(" ")
        if flows and not line.startswith(">"):
            joined[-1] = (joined[-1].removesuffix(" ") if without_space else joined[-1]) + line
        else:
            joined.append(line)
        flows = line.endswith(" ") and line != "-- "
    return "\n".join(joined)


def _attach(part: Message, number: int, reader: MemberReader) -> None:
    kind = part.get_content_type()
    payload = part.get_payload()
    inner = payload[0] if isinstance(payload, list) and payload else None
    if kind == "message/rfc822" and isinstance(inner, Message):
        subject = one_line(_header(inner, "Subject")).replace("/", "-")
        name = part.get_filename() or f"{short_label(subject) or 'message'}.eml"
        data = inner.as_bytes()
    else:
        name = part.get_filename() or ""
        decoded = part.get_payload(decode=True)
        data = decoded if isinstance(decoded, bytes) else b""
    name = attachment_name(name, kind, number)
    if reader.is_read(name):
        reader.begin(len(data))
        reader.read(name, data, str(part.get("content-type", "")) or None)


def _header(message: Message, name: str) -> str:
    """Return a header's text; empty where it is missing or cannot be read."""
    try:
        return str(message.get(name, ""))
    except Exception:  # noqa: BLE001 (the parsers of headers raise what they meet in damaged ones)
        return ""


def _metadata(message: EmailMessage, subject: str) -> dict[str, str | None]:
    try:
        created = parsedate_to_datetime(_header(message, "Date")).isoformat()
    except (ValueError, TypeError, IndexError, OverflowError):
        created = None
    people = {field: short_label(one_line(clean_text(_header(message, name)))) for field, name in _HEADERS}
    return {"title": subject, "author": one_line(clean_text(_header(message, "From"))), "created": created, **people}


def unread_attachment(name: str) -> Notice:
    """Return the notice of an attachment that is no file: a message in a message, a link."""
    return omitted(f"its attachment {name} is a message or a link and not embedded", "save it as a file of its own")
