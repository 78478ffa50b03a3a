"""Equations as a line of text: Office's own markup, and MathML. Used by the formats of office documents."""

from collections.abc import Callable
from typing import Any

from vectorize_pipelines.documents.formats.package import attribute, name_of, text_of
from vectorize_pipelines.documents.formats.values import one_line

#: Properties of Office's equations, which hold no text that is shown.
_PROPERTIES = "Pr"
_NARY_DEFAULT = "∫"
_OPEN, _CLOSE, _BETWEEN = "(", ")", "|"


def equation_text(element: Any) -> str:
    """Return an `m:oMath` as it is typed on a line: `x=(-b±√(b^2-4ac))/2a`."""
    return one_line(_office(element))


def mathml_text(element: Any) -> str:
    """Return a MathML element as text: its annotation in words, as OpenOffice writes one, else its characters."""
    for each in element.iter():
        if name_of[each.tag] == "math:annotation" and "starmath" in (attribute(each, "encoding") or "").lower():
            return one_line(text_of(each))
    return one_line(_mathml(element))


def _office(element: Any) -> str:
    name = name_of[element.tag]
    if name == "m:t":
        return element.text or ""
    if name == "w:t":
        return element.text or ""
    if name.endswith(_PROPERTIES) or name in ("w:del", "w:moveFrom"):
        return ""
    build = _OFFICE.get(name)
    return build(element) if build else "".join(map(_office, element))


def _part(element: Any, name: str) -> str:
    """Return the text of the child of that name."""
    return next((_office(child) for child in element if name_of[child.tag] == name), "")


def _parts(element: Any, name: str) -> list[str]:
    return [_office(child) for child in element if name_of[child.tag] == name]


def _property(element: Any, name: str) -> str | None:
    """Return the value of a property, such as an operator's character; None where it is not given."""
    for properties in element:
        if name_of[properties.tag].endswith(_PROPERTIES):
            for each in properties:
                if name_of[each.tag] == name:
                    return attribute(each, "m:val") or ""
    return None


def _grouped(text: str) -> str:
    """Return a part of a formula in brackets, where it is more than a number or a name."""
    bracketed = text.startswith(_OPEN) and text.endswith(_CLOSE) and text.count(_OPEN) == 1
    return text if len(text) <= 1 or text.isalnum() or bracketed else f"{_OPEN}{text}{_CLOSE}"


def _fraction(element: Any) -> str:
    return f"{_grouped(_part(element, 'm:num'))}/{_grouped(_part(element, 'm:den'))}"


def _scripts(element: Any) -> str:
    below, above = _part(element, "m:sub"), _part(element, "m:sup")
    return _part(element, "m:e") + (f"_{_grouped(below)}" if below else "") + (f"^{_grouped(above)}" if above else "")


def _scripts_before(element: Any) -> str:
    return f"_{_grouped(_part(element, 'm:sub'))}^{_grouped(_part(element, 'm:sup'))}{_part(element, 'm:e')}"


def _root(element: Any) -> str:
    degree = _part(element, "m:deg")
    return (f"{_grouped(degree)}" if degree else "") + f"√{_OPEN}{_part(element, 'm:e')}{_CLOSE}"


def _nary(element: Any) -> str:
    sign = _property(element, "m:chr")
    below, above = _part(element, "m:sub"), _part(element, "m:sup")
    bounds = (f"_{_grouped(below)}" if below else "") + (f"^{_grouped(above)}" if above else "")
    return f"{_NARY_DEFAULT if sign is None else sign}{bounds} {_part(element, 'm:e')}"


def _delimiters(element: Any) -> str:
    opening, between, closing = (_property(element, f"m:{name}") for name in ("begChr", "sepChr", "endChr"))
    inner = (_BETWEEN if between is None else between).join(_parts(element, "m:e"))
    return (_OPEN if opening is None else opening) + inner + (_CLOSE if closing is None else closing)


def _function(element: Any) -> str:
    return f"{_part(element, 'm:fName')} {_part(element, 'm:e')}"


def _limit(element: Any) -> str:
    return f"{_part(element, 'm:e')}_{_grouped(_part(element, 'm:lim'))}"


def _matrix(element: Any) -> str:
    rows = (", ".join(_parts(row, "m:e")) for row in element if name_of[row.tag] == "m:mr")
    return f"[{'; '.join(rows)}]"


def _lines(element: Any) -> str:
    return "; ".join(_parts(element, "m:e"))


def _accent(element: Any) -> str:
    return _part(element, "m:e") + (_property(element, "m:chr") or "")


_OFFICE: dict[str, Callable[[Any], str]] = {
    "m:f": _fraction,
    "m:sSub": _scripts,
    "m:sSup": _scripts,
    "m:sSubSup": _scripts,
    "m:sPre": _scripts_before,
    "m:rad": _root,
    "m:nary": _nary,
    "m:d": _delimiters,
    "m:func": _function,
    "m:limLow": _limit,
    "m:limUpp": _limit,
    "m:m": _matrix,
    "m:eqArr": _lines,
    "m:acc": _accent,
}


def _mathml(element: Any) -> str:
    name = name_of[element.tag].removeprefix("math:")
    if name in ("annotation", "annotation-xml"):
        return ""
    children = [_mathml(child) for child in element if isinstance(child.tag, str)]
    if name == "mfrac" and len(children) == 2:
        return f"{_grouped(children[0])}/{_grouped(children[1])}"
    if name in ("msup", "mover") and len(children) == 2:
        return f"{children[0]}^{_grouped(children[1])}"
    if name in ("msub", "munder") and len(children) == 2:
        return f"{children[0]}_{_grouped(children[1])}"
    if name in ("msubsup", "munderover") and len(children) == 3:
        return f"{children[0]}_{_grouped(children[1])}^{_grouped(children[2])}"
    if name == "msqrt":
        return f"√{_OPEN}{''.join(children)}{_CLOSE}"
    return (element.text or "").strip() + "".join(children)
