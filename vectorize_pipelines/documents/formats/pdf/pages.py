"""A page as one of the engines reads it, and the texts that PDFium returns."""

import ctypes
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from vectorize_pipelines.documents.formats.values import clean_text


@dataclass(frozen=True, slots=True)
class PageText:
    """The text of a page, a line of it a line.

    shows        whether the page shows something beside that text: a picture, a drawing, letters without a meaning
    has_letters  whether the page sets letters, whatever they mean
    is_picture   whether the page is a picture beside a few words, such as a scan with a stamp of the program
    """

    text: str
    shows: bool = False
    has_letters: bool = False
    is_picture: bool = False


def utf16_text(read: Callable[[Any, int], int]) -> str:
    """Return the text that a function of PDFium's writes as UTF-16 into a buffer of so many bytes."""
    from pypdfium2 import raw

    size = read(None, 0)
    if size <= 2:
        return ""
    buffer = ctypes.create_string_buffer(size)
    read(ctypes.cast(buffer, ctypes.POINTER(raw.FPDF_WCHAR)), size)
    return clean_text(buffer.raw[: size - 2].decode("utf-16-le", "ignore")).strip()
