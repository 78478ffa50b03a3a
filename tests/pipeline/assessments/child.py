"""A drain run over detections or tasks in a process of its own, which its parent may kill.

`python -m tests.pipeline.assessments.child SPECIFICATION`, which is JSON: `followed` (detections or assessments) and
`settings`, a tree. It writes a line once the run is open.
"""

import json
import os
import sys
from functools import partial

from vectorize_pipelines.kafka.followed import DETECTIONS
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.runs import open_drain
from vectorize_pipelines.pipeline.assessments.task_runs import open_task_drain
from vectorize_pipelines.providers.configured import configured_chat_model
from vectorize_pipelines.settings import load_settings


def main() -> None:
    specification = json.loads(sys.argv[1])
    settings = load_settings(**specification["settings"])
    run_id = f"child-{os.getpid()}"
    if specification["followed"] == DETECTIONS:
        with open_task_drain(settings, DrainRequest(run_id, once=True)) as tasks:
            print("open", flush=True)
            tasks.run()
    else:
        with open_drain(
            settings, DrainRequest(run_id, once=True), partial(configured_chat_model, settings)
        ) as assessments:
            print("open", flush=True)
            assessments.run()


if __name__ == "__main__":
    main()
