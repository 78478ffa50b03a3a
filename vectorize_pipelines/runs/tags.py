"""Tags and states by which runs are told apart, and find those beside them."""

import dagster as dg

from vectorize_pipelines.core import request_runs
from vectorize_pipelines.core.shards import WHOLE, Shard
from vectorize_pipelines.kafka.followed import FollowedTopic

MODE_TAG = "vectorize/mode"
#: The collection that a drain run brings up to date.
COLLECTION_TAG = "vectorize/collection"
#: The part of the work that a run owns, as `0/4`: the first of four.
SHARD_TAG = "vectorize/shard"
#: The topic that a run drains; where it has lanes, the one without priority.
TOPIC_TAG = "vectorize/topic"
#: Topic and shard in one: `dagster.yaml` lets two runs with the same value not run at once.
OWNS_TAG = "vectorize/owns"
#: Names the queue from which workers on several hosts take the run, in place of the one for its kind.
QUEUE_TAG = "vectorize/queue"
#: The runs, by commas, that were killed for their memory: this one, and those that it repeats.
OUT_OF_MEMORY_TAG = "vectorize/out_of_memory"
#: Set on a run that is to end soon; the value says why.
WIND_DOWN_TAG = "vectorize/wind_down"
#: Set on a run that was told to end before it had begun: Dagster calls it failed, and nothing is wrong.
NEVER_BEGUN_TAG = "vectorize/never_begun"
#: What a run was told, or has said: nothing of it is meant for the run that repeats it.
TOLD_TAGS = frozenset({WIND_DOWN_TAG, NEVER_BEGUN_TAG})
REQUEST_ID_TAG = request_runs.REQUEST_ID_TAG
SUBMITTED_TAG = request_runs.SUBMITTED_TAG
LAUNCHED_BY_TAG = "vectorize/launched_by"

#: Dagster's own, which has no public names for them.
MAX_RETRIES_TAG = "dagster/max_retries"
WILL_RETRY_TAG = "dagster/will_retry"
#: Names the run that repeats this one.
AUTO_RETRY_TAG = "dagster/auto_retry_run_id"
#: Where Dagster's default launcher notes which code server has launched a run.
CODE_SERVER_TAG = ".dagster/grpc_info"
#: Of a run that failed because its process was told to end, and nobody had terminated the run.
INTERRUPTED = {"dagster/failure_reason": "UNEXPECTED_TERMINATION"}

#: The states of a run that has a process, or is just getting one.
RUNNING = [dg.DagsterRunStatus.STARTING, dg.DagsterRunStatus.STARTED, dg.DagsterRunStatus.CANCELING]
#: The states of a run that may still be at work.
UNFINISHED = [dg.DagsterRunStatus.QUEUED, dg.DagsterRunStatus.NOT_STARTED, *RUNNING]
#: The states of a run that has ended.
FINISHED = [dg.DagsterRunStatus.SUCCESS, dg.DagsterRunStatus.FAILURE, dg.DagsterRunStatus.CANCELED]


def topic_tags(followed: FollowedTopic) -> dict[str, str]:
    """The tags that all drain runs of a topic have."""
    return {MODE_TAG: "drain", TOPIC_TAG: followed.topic}


def drain_tags(followed: FollowedTopic, shard: Shard = WHOLE) -> dict[str, str]:
    """The tags of a drain run of a topic."""
    return {**topic_tags(followed), SHARD_TAG: str(shard), OWNS_TAG: f"{followed.topic} {shard}"}
