"""One drain run over the detections' topic in this process; prints what it took as JSON.

Called by `tasks.py` in a process of its own: python -m benchmarks.assessments.tasks_run HOME BOOTSTRAP_SERVERS
With PROFILE in the environment it writes a profile to that file.
"""

import cProfile
import json
import os
import sys
import time

from benchmarks.figures import peak_mib
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.task_runs import open_task_drain
from vectorize_pipelines.settings import load_settings


def main() -> None:
    """Drain, and print."""
    home, servers = sys.argv[1:]
    settings = load_settings({}, home=home, kafka={"bootstrap_servers": servers})
    profile = cProfile.Profile() if "PROFILE" in os.environ else None
    started, cpu = time.perf_counter(), time.process_time()
    with open_task_drain(settings, DrainRequest("bench", once=True)) as run:
        if profile is None:
            run.run()
        else:
            profile.runcall(run.run)
            profile.dump_stats(os.environ["PROFILE"])
        outcome = {
            **run.total.as_dict(),
            "seconds": time.perf_counter() - started,
            "cpu_seconds": time.process_time() - cpu,
            "peak_mib": peak_mib(),
        }
    print(json.dumps(outcome))


if __name__ == "__main__":
    main()
