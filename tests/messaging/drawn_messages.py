"""Messages that hypothesis draws: valid ones, with every field there is."""

import json
from typing import Any

from hypothesis import strategies as st

from vectorize_pipelines.core.items import Modality
from vectorize_pipelines.messaging.messages import MAX_PRIORITY, TASK_TYPE_OF, TaskType

printable = st.text(st.characters(codec="utf-8", exclude_categories=["C", "Z"]), min_size=1, max_size=40)
texts = st.text(st.characters(codec="utf-8"), min_size=1).filter(lambda text: bool(text.strip()))
scalars = (
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False, allow_infinity=False)
)
json_values: st.SearchStrategy[Any] = st.recursive(
    scalars | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(printable, inner, max_size=3),
    max_leaves=8,
)
metadata = st.dictionaries(printable, json_values, max_size=4)


def optional(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


@st.composite
def messages(draw: st.DrawFn) -> tuple[Modality, dict[str, Any]]:
    """A valid message with its topic's modality."""
    modality = draw(st.sampled_from(Modality))
    inline = st.fixed_dictionaries(
        {"content": texts}, optional={"title": optional(printable), "metadata": optional(metadata)}
    )
    data = texts | inline if modality is Modality.DOCUMENT else texts
    entry = data | data.map(lambda each: {"task_type": TASK_TYPE_OF[modality].value, "data": each})
    task_type = draw(st.sampled_from([TASK_TYPE_OF[modality], TaskType.BATCH]))
    message = {
        "task_type": task_type.value,
        "data": draw(st.lists(entry, min_size=1, max_size=5) if task_type is TaskType.BATCH else data),
        "task_id": draw(optional(printable)),
        "version": draw(st.sampled_from([None, 1])),
        "model_name": draw(optional(printable)),
        "collection": draw(optional(st.from_regex(r"[a-z][a-z0-9_-]{0,62}", fullmatch=True))),
        "priority": draw(st.sampled_from([None, "low", "normal", "high"]) | st.integers(0, MAX_PRIORITY)),
        "batch_size": draw(optional(st.integers(1, 1_000_000))),
        "metadata": draw(optional(metadata)),
        "callback_url": draw(st.sampled_from([None, "https://example.com/done?x=1", "http://127.0.0.1:8080/"])),
    }
    left_out = draw(st.sets(st.sampled_from(sorted(message.keys() - {"task_type", "data"}))))
    return modality, {name: value for name, value in message.items() if name not in left_out}


def encoded(message: Any) -> bytes:
    return json.dumps(message).encode()
