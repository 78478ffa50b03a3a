"""One drain run that follows its topic until the process is ended. Called by `live.py`, in a process of its own:

python -m benchmarks.assessments.live_run tasks|assessing SETTINGS
"""

import json
import sys
from functools import partial

from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.runs import open_drain
from vectorize_pipelines.pipeline.assessments.task_runs import open_task_drain
from vectorize_pipelines.providers.configured import configured_chat_model
from vectorize_pipelines.settings import load_settings

#: Longer than anybody measures.
IDLE_SECONDS = 3600.0


def main() -> None:
    """Follow the topic."""
    kind, tree = sys.argv[1:]
    settings = load_settings({}, **json.loads(tree))
    if kind == "tasks":
        with open_task_drain(settings, DrainRequest("bench", idle_seconds=IDLE_SECONDS)) as tasks:
            tasks.run()
    else:
        request = DrainRequest("bench", idle_seconds=IDLE_SECONDS)
        with open_drain(settings, request, partial(configured_chat_model, settings)) as assessing:
            assessing.run()


if __name__ == "__main__":
    main()
