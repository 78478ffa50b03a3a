"""Characters of the fonts Symbol and Wingdings, which documents write by their place in the font. Used by `word`."""

_LATIN = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
_SYMBOL = dict(zip(_LATIN, "ΑΒΧΔΕΦΓΗΙϑΚΛΜΝΟΠΘΡΣΤΥςΩΞΨΖαβχδεφγηιϕκλμνοπθρστυϖωξψζ", strict=True)) | {
    "\xa3": "≤", "\xa5": "∞", "\xae": "→", "\xac": "←", "\xab": "↔", "\xb0": "°", "\xb1": "±", "\xb3": "≥",
    "\xb4": "×", "\xb6": "∂", "\xb7": "•", "\xb8": "÷", "\xb9": "≠", "\xba": "≡", "\xbb": "≈", "\xbc": "…",
    "\xc5": "⊕", "\xc6": "∅", "\xc7": "∩", "\xc8": "∪", "\xce": "∈", "\xd1": "∇", "\xd5": "∏", "\xd6": "√",
    "\xde": "⇒", "\xe5": "∑", "\xf2": "∫",
}  # fmt: skip
_WINGDINGS = {
    "\x6c": "●", "\x6e": "■", "\x6f": "☐", "\xa7": "▪", "\xa8": "☐", "\xd8": "➢", "\xdf": "←", "\xe0": "→",
    "\xe8": "➔", "\xfb": "✗", "\xfc": "✓", "\xfd": "☒", "\xfe": "☑",
}  # fmt: skip
#: Where Office puts the characters of such fonts.
_PRIVATE = range(0xF000, 0xF100)


def symbol(font: str, code: str) -> str:
    """Return the character at a hexadecimal place in a font; empty where nobody can tell which it is."""
    try:
        place = int(code, 16)
    except ValueError:
        return ""
    if place in _PRIVATE:
        place -= _PRIVATE.start
    if not 0x20 <= place <= 0x10FFFF or 0xD800 <= place <= 0xDFFF or 0xE000 <= place <= 0xF8FF:
        return ""
    table = {"symbol": _SYMBOL, "wingdings": _WINGDINGS}.get(font.lower())
    return chr(place) if table is None else table.get(chr(place), "" if table is _WINGDINGS else chr(place))
