"""What a page's own style sheets hide: rules with `display` or `visibility` for tags, classes and ids.

Called by `html`. No full cascade: what hides counts only where it is sure, outside of media queries and for selectors
without conditions, and what shows again counts wherever it stands, so that in doubt text is kept.
"""

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from vectorize_pipelines.documents.formats.values import one_line

if TYPE_CHECKING:
    from selectolax.lexbor import LexborHTMLParser, LexborNode

#: Of all `<style>` elements together; a page with more has its further ones ignored.
MAX_CHARACTERS = 1 << 20
#: Rules that are looked up in the page, each in time that grows with the page.
MAX_RULES = 200
MAX_RULES_OF_LARGE_PAGE = 20
LARGE_PAGE_CHARACTERS = 4 << 20

Property = Literal["display", "visibility"]
HIDING = {"display": frozenset(("none",)), "visibility": frozenset(("hidden", "collapse"))}

_COMMENT = re.compile(r"/\*.*?(?:\*/|\Z)", re.DOTALL)
_STRING = re.compile(r"\"[^\"\n]*\"|'[^'\n]*'")
_BRACE = re.compile(r"([{}])")
_NAMES = re.compile(r"display|visibility", re.IGNORECASE)
_HIDES = re.compile(r"display\s*:\s*none|visibility\s*:\s*(?:hidden|collapse)", re.IGNORECASE)
_DECLARATION = re.compile(
    r"(?:^|;)\s*+(display|visibility)\s*+:\s*+([a-z-]++)\s*+(?:[a-z-]++\s*+)?+(!\s*+important\s*+)?(?=;|$)",
    re.IGNORECASE,
)
_SIMPLE = re.compile(r"[\w*.#-]++(?:(?: ?[>+~] ?| )[\w*.#-]++)*+")
#: Conditions that do not hold while somebody only reads, and what is no element of the page.
_UNMET = re.compile(r"\[|::|:(?:hover|focus|active|target|checked|visited|link|before|after)")
_EVERYTHING = re.compile(r"(?:^|[ >+~])(?:html|body|main|\*)$", re.IGNORECASE)
_SHOWN_MEDIA = re.compile(r"(?:only\s+)?(?:all|screen)", re.IGNORECASE)
_PRINT = re.compile(r"\bprint\b|\bspeech\b", re.IGNORECASE)
_ID, _CLASS, _TAG = re.compile(r"#[\w-]"), re.compile(r"[.:][\w-]"), re.compile(r"(?:^|[ >+~])[a-z]", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class _Rule:
    selector: str
    property: Property
    shows: bool
    weight: tuple[bool, int, int, int, int]


class StyleSheets:
    """What the style sheets of a page say of its elements, which are named by their `mem_id`."""

    def __init__(self, tree: "LexborHTMLParser", page_characters: int) -> None:
        self._shown: dict[Property, dict[int, tuple[bool, bool]]] = {"display": {}, "visibility": {}}
        limit = MAX_RULES if page_characters < LARGE_PAGE_CHARACTERS else MAX_RULES_OF_LARGE_PAGE
        rules = _rules(_sheets(tree))
        hiding = [rule for rule in rules if not rule.shows][:limit]
        hidden = {rule: nodes for rule in hiding if (nodes := _matching(tree, rule.selector))}
        #: Whether they hide anything.
        self.apply = bool(hidden)
        if not hidden:
            return
        showing = {rule: _matching(tree, rule.selector) for rule in [rule for rule in rules if rule.shows][:limit]}
        for rule, nodes in sorted((hidden | showing).items(), key=lambda item: item[0].weight):
            for node in nodes:
                self._shown[rule.property][node.mem_id] = (rule.shows, rule.weight[0])

    def shown(self, property_: Property, node: "LexborNode", inline: tuple[bool, bool] | None) -> bool | None:
        """Return whether a property shows the element; None where nothing sets it.

        `inline` is what the element's own attribute says: whether it is shown, and whether that is important.
        """
        sheet = self._shown[property_].get(node.mem_id)
        if inline is None or (sheet is not None and sheet[1] and not inline[1]):
            return None if sheet is None else sheet[0]
        return inline[0]


def inline_style(style: str) -> dict[Property, tuple[bool, bool]]:
    """Return what an attribute `style` says: by property whether it shows the element and whether that is important."""
    return {name: (shows, important) for name, shows, important in _declarations(_COMMENT.sub("", style))}


def _declarations(text: str) -> Iterator[tuple[Property, bool, bool]]:
    for match in _DECLARATION.finditer(text):
        name, value = match[1].lower(), match[2].lower()
        property_: Property = "display" if name == "display" else "visibility"
        yield property_, value not in HIDING[property_], match[3] is not None


def _sheets(tree: "LexborHTMLParser") -> Iterator[tuple[str, str]]:
    """Yield the media and the text of each style sheet that a browser with scripts applies."""
    size = 0
    for style in tree.css("style"):
        media = style.attributes.get("media") or "all"
        text = style.child.text_content if style.child is not None else None
        if not text or _within_noscript(style):
            continue
        size += len(text)
        if size > MAX_CHARACTERS:
            return
        yield media, text


def _within_noscript(node: "LexborNode") -> bool:
    above = node.parent
    return above is not None and above.tag in ("noscript", "template", "svg")


def _rules(sheets: Iterable[tuple[str, str]]) -> list[_Rule]:
    """Return the rules that set one of the properties; none where nothing is hidden."""
    texts = [(media, text) for media, text in sheets]
    if not any(_HIDES.search(text) for _, text in texts):
        return []
    rules: list[_Rule] = []
    for media, text in texts:
        for conditions, selectors, body in _blocks(_STRING.sub('""', _COMMENT.sub("", text))):
            if not _NAMES.search(body):
                continue
            for name, shows, important in _declarations(body):
                for selector in map(one_line, selectors.split(",")):
                    if _counts(selector, shows, (f"@media {media}", *conditions)):
                        weight = (important, *_specificity(selector), len(rules))
                        rules.append(_Rule(selector, name, shows, weight))
    return rules


def _blocks(text: str) -> Iterator[tuple[list[str], str, str]]:
    """Yield each block of declarations: what it lies in, its selectors, its text."""
    open_blocks: list[str] = []
    before = ""
    for piece in _BRACE.split(text):
        if piece == "{":
            open_blocks.append(before.rpartition(";")[2].strip())
            before = ""
        elif piece == "}":
            if open_blocks:
                selectors = open_blocks.pop()
                if selectors and not selectors.startswith("@"):
                    yield open_blocks.copy(), selectors, before
            before = ""
        else:
            before = piece


def _counts(selector: str, shows: bool, conditions: Iterable[str]) -> bool:
    """Return whether a rule is applied here; in doubt those that show are, and those that hide are not."""
    if not selector or len(selector) > 1000:
        return False
    media = [condition.partition("@media")[2].strip() for condition in conditions if condition.startswith("@media")]
    if shows:
        return not _UNMET.search(selector) and not any(map(_PRINT.search, media))
    if any(not condition.startswith(("@media", "@layer")) for condition in conditions):
        return False  # within another rule, or under a condition
    everywhere = all(_SHOWN_MEDIA.fullmatch(medium) for medium in media)
    return everywhere and _SIMPLE.fullmatch(selector) is not None and not _EVERYTHING.search(selector)


def _specificity(selector: str) -> tuple[int, int, int]:
    return len(_ID.findall(selector)), len(_CLASS.findall(selector)), len(_TAG.findall(selector))


def _matching(tree: "LexborHTMLParser", selector: str) -> list["LexborNode"]:
    from selectolax.lexbor import SelectolaxError

    try:
        return tree.css(selector)
    except (SelectolaxError, ValueError):  # not one that lexbor knows
        return []
