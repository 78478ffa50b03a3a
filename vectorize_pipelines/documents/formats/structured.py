"""JSON, XML and YAML as text that is read: values with their names, one a line, structure by indentation.

What is no valid JSON or XML, such as a configuration with comments, is taken as the plain text that it is.
"""

import json
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

from vectorize_pipelines.core.notices import Notice, assumed
from vectorize_pipelines.documents.context import ParseContext
from vectorize_pipelines.documents.errors import CorruptDocumentError, damage_reported
from vectorize_pipelines.documents.formats.html import parse_html, xml_declaration
from vectorize_pipelines.documents.formats.outline import OutlineBuilder
from vectorize_pipelines.documents.formats.package import parse_xml
from vectorize_pipelines.documents.formats.text import Decoded, decode
from vectorize_pipelines.documents.formats.values import one_line
from vectorize_pipelines.documents.types import ParsedDocument

INDENT = "  "
_XHTML = "{http://www.w3.org/1999/xhtml}html"
#: JSON may nest deeper than Python follows.
_DEEPEST = 200
_XML_DECLARATION = re.compile(r"\s*<\?xml\s[^>]*\?>")


class _Pairs(NamedTuple):
    """An object's members in order; one name may come twice."""

    members: list[tuple[str, Any]]


def parse_json(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the values as lines `name: value`, numbers as they are written; a section for each part of an object.

    A list of objects stays one text, an empty line between them: rows of a table are JSON Lines'.
    """
    text, notices = decode(content, context)
    try:
        with damage_reported("JSON"):
            value = json.loads(text, object_pairs_hook=_Pairs, parse_float=str, parse_int=str, parse_constant=str)
    except CorruptDocumentError as error:
        return _as_it_is(Decoded(text, notices), "json", error)
    builder = OutlineBuilder()
    with damage_reported("JSON"):
        if isinstance(value, _Pairs):
            _json_object(value, builder)
        elif isinstance(value, list):
            for each in value:
                builder.block("\n".join(_json_lines(each, "")), "\n\n" if isinstance(each, (list, _Pairs)) else "\n")
        else:
            builder.block(_scalar(value))
    text, sections = builder.build()
    return ParsedDocument(text, {"parser": "json"}, sections, notices=notices)


def parse_xml_document(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return elements as lines `name: text`, attributes beside their element's name, mixed content as a paragraph."""
    decoded = decode(content, context, xml_declaration(content))
    try:
        with damage_reported("XML"):
            root = parse_xml(decoded.text.lstrip().encode(), "utf-8")
    except CorruptDocumentError as error:
        return _as_it_is(decoded, "xml", error)
    if root.tag == _XHTML:
        return parse_html(content, context)
    with damage_reported("XML"):
        text = "\n".join(_xml_lines(root, ""))
    return ParsedDocument(_clean(text), {"parser": "xml"}, notices=decoded.notices)


def parse_yaml(content: bytes, context: ParseContext) -> ParsedDocument:
    """Return the text as it stands, comments included: YAML is written to be read."""
    text, notices = decode(content, context)
    return ParsedDocument(text, {"parser": "yaml"}, notices=notices)


def _as_it_is(decoded: Decoded, parser: str, error: CorruptDocumentError) -> ParsedDocument:
    reason = str(error).partition(";")[0]
    return ParsedDocument(decoded.text, {"parser": parser}, notices=(*decoded.notices, _plain(parser, reason)))


def _plain(parser: str, reason: str) -> Notice:
    return assumed(f"was taken as plain text, since it {reason}", f"if it is meant to be {parser.upper()}, repair it")


def _clean(text: str) -> str:
    builder = OutlineBuilder()
    builder.block(text)
    return builder.build()[0]


def _json_object(value: _Pairs, builder: OutlineBuilder) -> None:
    """Hand over an object: its plain values, which belong to none of its parts, then each part under its name."""
    parts = [each for each in value.members if _has_values(each[1])]
    plain = [each for each in value.members if not _has_values(each[1])]
    builder.block("\n".join(_json_lines(_Pairs(plain), "")))
    for name, member in parts:
        builder.heading(name, 1)
        builder.block("\n".join(_json_lines(member, "")))


def _has_values(value: Any) -> bool:
    """Return whether a value is an object or a list with something in it."""
    return bool(value.members if isinstance(value, _Pairs) else isinstance(value, list) and value)


def _json_lines(value: Any, indent: str) -> Iterator[str]:
    """Yield the lines of a value, as YAML has them without its quotes."""
    if len(indent) > len(INDENT) * _DEEPEST:
        raise RecursionError("nested too deeply")
    if isinstance(value, _Pairs):
        for name, member in value.members:
            if isinstance(member, (_Pairs, list)):
                yield f"{indent}{one_line(name)}:"
                yield from _json_lines(member, indent + INDENT)
            else:
                yield f"{indent}{one_line(name)}: {_scalar(member)}".rstrip()
    elif isinstance(value, list):
        for each in value:
            lines = _json_lines(each, indent + INDENT)
            first = next(lines, "")
            yield f"{indent}- {first.strip()}"
            yield from lines
    else:
        yield f"{indent}{_scalar(value)}"


def _scalar(value: Any) -> str:
    """Return a plain value as JSON has it, a text without its quotes."""
    if isinstance(value, str):
        return value
    return {None: "", True: "true", False: "false"}.get(value, "")


def _xml_lines(element: Any, indent: str) -> Iterator[str]:
    name = _name(element)
    attributes = " ".join(f"{_bare(key)}={one_line(value)}" for key, value in element.attrib.items())
    label = f"{name} ({attributes})" if attributes else name
    children = [child for child in element if isinstance(child.tag, str)]
    if not children or _is_mixed(element):
        text = one_line("".join(each for each in element.itertext() if isinstance(each, str)))
        if text or attributes:
            yield f"{indent}{label}: {text}".rstrip(": ")
        return
    yield f"{indent}{label}:"
    for child in children:
        yield from _xml_lines(child, indent + INDENT)


def _is_mixed(element: Any) -> bool:
    """Return whether text and elements stand beside each other, as in a paragraph."""
    return bool((element.text or "").strip()) or any((child.tail or "").strip() for child in element)


def _name(element: Any) -> str:
    return _bare(element.tag)


def _bare(name: str) -> str:
    return name.rpartition("}")[2]
