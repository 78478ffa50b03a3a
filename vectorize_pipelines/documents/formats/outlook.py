"""MSG: a message as Outlook saves it: body, headers as metadata, attachments as documents of their own."""

from email.header import decode_header, make_header
from io import BytesIO
from typing import Any

from vectorize_pipelines.core.notices import Notice, omitted
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import damage_reported
from vectorize_pipelines.documents.formats.mail import (
    attachment_name,
    best_body,
    message_document,
    unread_attachment,
)
from vectorize_pipelines.documents.formats.members import MemberReader
from vectorize_pipelines.documents.formats.values import clean_text, iso_date, one_line, short_label
from vectorize_pipelines.documents.types import ParsedDocument

#: The property in which Outlook keeps a text with its formatting, where it keeps it neither plain nor as HTML.
_COMPRESSED_RTF = 0x1009


def parse_msg(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return subject and body, headers as metadata, attachments as members.

    Raises `CorruptDocumentError`, `DecompressionLimitError`.
    """
    from oxmsg import Message

    with damage_reported("MSG"):
        message = Message.load(BytesIO(content))
        subject = one_line(clean_text(message.subject or ""))
        body, notices = best_body(clean_text(message.body or ""), clean_text(_html(message)), context)
        if not body and message.properties.binary_prop_value(_COMPRESSED_RTF):
            notices += (omitted("its text is kept as compressed RTF alone, and not embedded", "save it as .html"),)
        attachments = list(message.attachments)
        reader = MemberReader(context, "attachment") if attachments else None
        for number, attachment in enumerate(attachments, start=1):
            assert reader is not None
            notices += _attach(attachment, number, reader)
        metadata = _metadata(message, subject)
    return message_document(subject, body, metadata, "msg", notices, reader)


def _html(message: Any) -> str:
    """Return the HTML of a message; none where its encoding is unknown and the message has its text, too."""
    try:
        return message.html_body or ""
    except (UnicodeError, LookupError):
        if message.body:
            return ""
        raise


def _attach(attachment: Any, number: int, reader: MemberReader) -> tuple[Notice, ...]:
    name = attachment_name(attachment.file_name or "", attachment.mime_type or "", number)
    data = attachment.file_bytes
    if data is None:
        return (unread_attachment(name),)
    if reader.is_read(name):
        reader.begin(len(data))
        reader.read(name, data)
    return ()


def _decoded(header: str) -> str:
    """Return a header of the message as it was sent, in which other letters than ASCII are encoded."""
    try:
        return str(make_header(decode_header(header)))
    except (UnicodeError, LookupError, ValueError):
        return header


def _metadata(message: Any, subject: str) -> dict[str, str | None]:
    people = [f"{each.name} <{each.email_address}>" if each.name else each.email_address for each in message.recipients]
    return {
        "title": subject,
        "author": one_line(clean_text(_decoded(message.sender or ""))),
        "to": short_label(one_line(clean_text(", ".join(filter(None, people))))),
        "created": iso_date(message.sent_date),
    }
