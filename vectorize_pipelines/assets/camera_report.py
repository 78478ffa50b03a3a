"""The figures and the plot of `camera_risk`."""

import base64
import io
from collections import Counter
from collections.abc import Sequence
from typing import Any

import dagster as dg

from vectorize_pipelines.state.assessment_totals import LEVELS, CameraDay
from vectorize_pipelines.state.assessments import AssessmentRow

#: Rows of the table of a day; of more cameras, those with the highest scores.
CAMERAS_SHOWN = 100
#: Bars of the plot.
CAMERAS_PLOTTED = 20
SUMMARY_CHARACTERS = 200
_COLOURS = {"none": "#b9c4cc", "low": "#7fb285", "medium": "#e8c468", "high": "#e08b4c", "critical": "#b3362f"}


def camera_day_metadata(cameras: Sequence[CameraDay], worst: Sequence[AssessmentRow]) -> dict[str, Any]:
    """Return the metadata of one day: `cameras` are its cameras, `worst` its worst moments, the worst first."""
    completed = sum(each.completed for each in cameras)
    metadata: dict[str, Any] = {
        "cameras": len(cameras),
        "completed": completed,
        "failed": sum(each.failed for each in cameras),
        "expired": sum(each.expired for each in cameras),
        "cached": sum(each.cached for each in cameras),
        "prompt_tokens": sum(each.prompt_tokens for each in cameras),
        "completion_tokens": sum(each.completion_tokens for each in cameras),
        "cost": round(sum(each.cost for each in cameras), 6),
    }
    for place, level in enumerate(LEVELS):
        metadata[f"level/{level}"] = sum(each.levels[place] for each in cameras)
    if completed:
        spent = sum(each.latency_ms * each.completed for each in cameras)
        metadata["latency_seconds"] = round(spent / completed / 1000, 4)
        metadata["longest_seconds"] = round(max(each.longest_ms for each in cameras) / 1000, 4)
    if cameras:
        metadata["by_camera"] = dg.MetadataValue.table([_camera_record(each) for each in _riskiest(cameras)])
    if worst:
        metadata["worst_moments"] = dg.MetadataValue.table([_moment_record(each) for each in worst])
    return metadata


def camera_plot(days: Sequence[CameraDay]) -> dg.MarkdownMetadataValue:
    """Return the levels of each camera over all the days, as a picture inside Markdown, which the UI shows."""
    from matplotlib.figure import Figure  # without pyplot: no display, no global state

    levels: dict[str, Counter[str]] = {}
    for each in days:
        levels.setdefault(each.camera_id, Counter()).update(dict(zip(LEVELS, each.levels, strict=True)))
    names = sorted(levels, key=lambda name: [-levels[name][level] for level in reversed(LEVELS)])[:CAMERAS_PLOTTED]
    figure = Figure(figsize=(7, 1.5 + 0.25 * max(1, len(names))), layout="constrained")
    axes = figure.subplots()
    left = [0] * len(names)
    for level in LEVELS:
        counts = [levels[name][level] for name in names]
        axes.barh([name[:40] for name in names], counts, left=left, label=level, color=_COLOURS[level])
        left = [before + count for before, count in zip(left, counts, strict=True)]
    axes.invert_yaxis()
    axes.set_xlabel("groups")
    axes.set_title("Assessed groups by camera and level")
    axes.legend()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=110)
    encoded = base64.b64encode(image.getvalue()).decode()
    return dg.MetadataValue.md(f"![assessed groups by camera and level](data:image/png;base64,{encoded})")


def _riskiest(cameras: Sequence[CameraDay]) -> list[CameraDay]:
    return sorted(cameras, key=lambda each: (-(each.highest or 0.0), each.camera_id))[:CAMERAS_SHOWN]


def _camera_record(camera: CameraDay) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "camera": camera.camera_id,
            **dict(zip(LEVELS, camera.levels, strict=True)),
            "failed": camera.failed,
            "expired": camera.expired,
            "highest": round(camera.highest or 0.0, 3),
            "latency_ms": round(camera.latency_ms, 1),
            "cost": round(camera.cost, 6),
        }
    )


def _moment_record(row: AssessmentRow) -> dg.TableRecord:
    return dg.TableRecord(
        {
            "time": row.occurred_at.isoformat(timespec="seconds"),
            "camera": row.camera_id,
            "level": row.level or "",
            "score": round(row.score or 0.0, 3),
            "summary": (row.summary or "")[:SUMMARY_CHARACTERS],
            "message": row.message_id,
            "group": row.group_index,
        }
    )
