"""Text in pictures of pages, recognised by RapidOCR: the extra `ocr`, on where `documents.ocr` says so.

Its models (PP-OCRv6, small) come with its package. They read Chinese, Japanese and what is written in Latin letters.
"""

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from vectorize_pipelines.documents.formats.pdf.layout import Line, reading_order

if TYPE_CHECKING:
    from numpy.typing import NDArray

PIXELS_PER_INCH = 200
#: Of the longer side of a page's picture; a page of A4 at 200 pixels an inch has 2,339.
MAX_PIXELS = 3_000
#: What is recognised with less confidence is left out.
_MIN_CONFIDENCE = 0.5
#: A page with less may lie upside down.
_SURE = 0.85


@dataclass(frozen=True, slots=True)
class Recognised:
    """The text of a picture, line by line in reading order.

    confidence  0 to 1, the mean over its characters; 0 where there are none
    weight      the sum of the confidences of its characters
    lies        whether its lines go up or down
    """

    text: str
    confidence: float
    weight: float
    lies: bool


def recognise(picture: "NDArray[Any]") -> Recognised:
    """Return the text of a grey picture (height, width); its page may lie on its side or upside down."""
    upright = _recognised(picture, 0)
    if upright.lies:
        tried = [_recognised(picture, quarters) for quarters in (1, 3)]
    elif upright.confidence < _SURE:
        tried = [upright, _recognised(picture, 2)]
    else:
        return upright
    return max(tried, key=lambda each: each.weight)


def _recognised(picture: "NDArray[Any]", quarters: int) -> Recognised:
    """Return the text of a picture turned by so many quarters, counterclockwise."""
    import numpy as np

    found = _engine()(np.stack([np.rot90(picture, quarters)] * 3, axis=2))
    lines: list[Line] = []
    weight = 0.0
    if found.txts:
        for box, text, confidence in zip(found.boxes.tolist(), found.txts, found.scores, strict=True):
            across, down = [point[0] for point in box], [point[1] for point in box]
            lines.append(Line(str(text), min(across), min(down), max(across), max(down)))
            weight += float(confidence) * len(text)
    words = [line for line in lines if len(line.text) > 2]
    lies = 2 * sum(line.height > 1.5 * (line.right - line.left) for line in words) > len(words)
    size = sum(len(line.text) for line in lines)
    rows = _rows(reading_order(sorted(lines, key=lambda line: line.middle), _undivided))
    return Recognised("\n".join(rows), round(weight / size, 3) if size else 0.0, weight, lies)


def _rows(lines: list[Line]) -> list[str]:
    """Return lines as texts; what stands beside each other, such as the cells of a table, together."""
    rows: list[list[Line]] = []
    for line in lines:
        last = rows[-1][-1] if rows else None
        if last is not None and abs(line.middle - last.middle) < 0.4 * min(line.height, last.height):
            rows[-1].append(line)
        else:
            rows.append([line])
    return [" ".join(line.text for line in sorted(row, key=lambda line: line.left)) for row in rows]


def _undivided(line: Line, x: float) -> tuple[Line, Line]:
    raise AssertionError(f"a line of recognised text has one piece, and none is divided at {x}")


@lru_cache(maxsize=1)
def _engine() -> Any:
    import cv2
    from rapidocr import RapidOCR

    # One thread: others would wait for each other on the cores of the parsers beside this one.
    cv2.setNumThreads(1)
    return RapidOCR(
        params={
            "Global.text_score": _MIN_CONFIDENCE,
            "Global.use_cls": False,  # pages upside down are tried both ways instead
            "Global.log_level": "critical",
            # Not OpenVINO: it keeps what it prepared for each width of a line, which adds up to gigabytes.
            "EngineConfig.onnxruntime.intra_op_num_threads": 1,
            "EngineConfig.onnxruntime.inter_op_num_threads": 1,
        }
    )
