"""Plots of what was measured. Called by the benchmarks."""

from collections.abc import Mapping
from pathlib import Path


def bars(values: Mapping[str, float], unit: str, file: Path) -> Path:
    """A horizontal bar for each value, the first at the top, into an SVG or PNG file; gives the file."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    file.parent.mkdir(parents=True, exist_ok=True)
    figure, axes = pyplot.subplots(figsize=(9, 1 + 0.3 * len(values)), layout="constrained")
    drawn = axes.barh(list(values), list(values.values()))
    axes.bar_label(drawn, fmt="%.1f", padding=3)
    axes.invert_yaxis()
    axes.margins(x=0.1)
    axes.set_xlabel(unit)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(file)
    pyplot.close(figure)
    return file
