"""Texts that are numbers, as in the cells of a CSV file.

Called by the parsers of tables, for columns that the user says to be numbers, and by the filters on metadata, which
compare such texts as numbers.
"""

import math
import re

_LONGEST = 64
_NUMERAL = re.compile(r"-?(?:[0-9]+(?:\.[0-9]*)?|\.[0-9]+)(?:[eE][+-]?[0-9]{1,3})?")
_WHOLE = re.compile(r"-?[0-9]+")


def number_in(text: str) -> int | float | None:
    """Return the number that a text is written as, blanks around it aside; None for any other text.

    Written as programs write numbers: `12`, `-0.50`, `.5`, `1e3`, `007`. What begins with `+`, as telephone numbers do,
    is none, nor is what has separators of thousands or a unit.
    """
    text = text.strip()
    if not text or len(text) > _LONGEST or not _NUMERAL.fullmatch(text):
        return None
    value = int(text) if _WHOLE.fullmatch(text) else float(text)
    return value if math.isfinite(value) else None
