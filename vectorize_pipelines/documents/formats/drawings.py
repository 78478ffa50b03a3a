"""The text of charts and diagrams in office documents. Used by `word` and `slides`."""

from typing import Any

from vectorize_pipelines.documents.formats.package import Package, Relationship, attribute, name_of, text_of
from vectorize_pipelines.documents.formats.values import one_line

#: Points of one series that are written out: a chart of measurements is no text.
MAX_POINTS = 500


def drawing_text(package: Package, relationships: dict[str, Relationship], element: Any) -> str:
    """Return the text of what a `c:chart` or `dgm:relIds` element refers to, a line for each part of it."""
    is_chart = name_of[element.tag] == "c:chart"
    related = relationships.get(attribute(element, "r:id" if is_chart else "r:dm") or "")
    root = package.xml(related.target) if related else None
    if root is None:
        return ""
    return "\n".join(filter(None, _chart_lines(root) if is_chart else _diagram_lines(root)))


def _diagram_lines(root: Any) -> list[str]:
    """Return the texts of a diagram's points, in the order in which they were made."""
    return [one_line(_drawn_text(point)) for point in root.iter() if name_of[point.tag] == "dgm:t"]


def _chart_lines(root: Any) -> list[str]:
    """Return title, titles of axes, and of each series its name with its values: `Fees: 2023 40, 2024 45`."""
    titles = [one_line(_drawn_text(each)) for each in root.iter() if name_of[each.tag] == "c:title"]
    series = [_series_line(each) for each in root.iter() if name_of[each.tag] == "c:ser"]
    return titles + series


def _series_line(series: Any) -> str:
    names, labels, values = (_cached(series, name) for name in (("c:tx",), ("c:cat", "c:xVal"), ("c:val", "c:yVal")))
    points = [
        f"{labels[n]} {value}" if n < len(labels) else value for n, value in enumerate(values[:MAX_POINTS])
    ]  # what stands behind a chart is a table; its cached values are what is shown
    return ": ".join(filter(None, (" ".join(names), ", ".join(points or labels[:MAX_POINTS]))))


def _cached(series: Any, names: tuple[str, ...]) -> list[str]:
    return [
        one_line(text_of(value))
        for each in series
        if name_of[each.tag] in names
        for value in each.iter()
        if name_of[value.tag] == "c:v"
    ]


def _drawn_text(element: Any) -> str:
    return " ".join(each.text or "" for each in element.iter() if name_of[each.tag] in ("a:t", "c:v"))
