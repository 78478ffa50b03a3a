"""The names by which the launcher of a run for one request, and the job `embed_request` itself, understand each other.

Used by the HTTP server, which launches them by GraphQL, and by the job.
"""

#: Where Dagster finds the job; users launch it by these names, too.
LOCATION = "vectorize_pipelines.definitions"
REPOSITORY = "__repository__"
JOB = "embed_request"
#: The op whose config is the request's JSON.
OP = "request"
#: The tag with the `task_id` of the request that a run is for.
REQUEST_ID_TAG = "vectorize/request_id"
#: The tag with the time at which the request was submitted, in milliseconds since 1970: requests of one `task_id` are
#: ordered by it, whichever run starts first. Without it the time at which the run starts counts.
SUBMITTED_TAG = "vectorize/submitted_ms"
