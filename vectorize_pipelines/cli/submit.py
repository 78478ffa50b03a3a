"""`vectorize submit`: requests by Kafka, from an argument, a file or stdin."""

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click

from vectorize_pipelines.cli.showing import show_notice
from vectorize_pipelines.core.urls import scheme_of
from vectorize_pipelines.state.home import enter_home

if TYPE_CHECKING:
    from vectorize_pipelines.client import VectorizeClient
    from vectorize_pipelines.messaging.events import ResultEvent

EXIT_NOT_IN_TIME = 1
EXIT_FAILED_REQUESTS = 6
#: Lines that are sent together.
_CHUNK = 10_000
#: No topic takes what is longer.
_LONGEST_LINE = 64 * 2**20


def _metadata(context: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for value in values:
        name, separator, content = value.partition("=")
        if not name or not separator:
            raise click.BadParameter(f"{value} is not NAME=VALUE")
        pairs[name] = content
    return pairs


@click.command()
@click.argument("text", required=False)
@click.option("--file", type=click.File(encoding="utf-8"), help="Each line is a text; of a .jsonl file, a request.")
@click.option("--image", "images", multiple=True, metavar="URI", help="An image, by its URI or path; may be repeated.")
@click.option(
    "--document", "documents", multiple=True, metavar="URI", help="A document, by its URI or path; may be repeated."
)
@click.option("--batch", is_flag=True, help="One request with all lines, or all URIs, instead of one for each.")
@click.option("--id", "task_id", metavar="ID", help="The id of a single request.  [default: a new one]")
@click.option("--collection", help="Where to.  [default: that of the settings]")
@click.option("--model", "model_name", help="Model to embed with.  [default: that of the settings]")
@click.option("--priority", metavar="low|normal|high|N", help="Above 0 (high is 1): the priority lane.")
@click.option("--metadata", multiple=True, metavar="NAME=VALUE", callback=_metadata, help="May be repeated.")
@click.option(
    "--chunk/--no-chunk",
    default=None,
    help="Cut a text into passages as a document is.  [default: as the settings say]",
)
@click.option("--callback-url", metavar="URL", help="What became of it is posted here.")
@click.option("--wait", is_flag=True, help="Wait until all are done.")
@click.option("--timeout", type=click.FloatRange(min=0), default=300.0, show_default=True, help="Seconds to wait.")
@click.option("--json", "as_json", is_flag=True, help="Print the requests as JSON.")
def command(
    text: str | None,
    file: TextIO | None,
    images: tuple[str, ...],
    documents: tuple[str, ...],
    batch: bool,
    wait: bool,
    timeout: float,
    as_json: bool,
    **fields: Any,
) -> int:
    """Submit requests to be embedded: TEXT, or the lines of --file or of stdin, or images or documents by URI.

    Ends when the brokers have confirmed them; with --wait, when they are done. Exits with 1 where some were not done
    within --timeout, and with 6 where some failed or were cancelled.
    """
    settings = enter_home().kafka
    common = _common(fields)
    from vectorize_pipelines.client import VectorizeClient
    from vectorize_pipelines.messaging.messages import InvalidMessageError

    with VectorizeClient.from_settings(settings, track=wait) as client:
        try:
            task_ids = list(_submit(client, _contents(text, file, images, documents), batch, common))
        except InvalidMessageError as error:
            raise click.UsageError(str(error)) from None
        if not task_ids:
            raise click.UsageError("there is nothing to submit")
        events = _wait(client, task_ids, timeout) if wait else {}
    _print(task_ids, events, as_json=as_json)
    if not wait:
        return 0
    submitted = len(set(task_ids))
    if left := submitted - len(events):
        click.echo(
            f"not done within {timeout:g} seconds: {left} of {submitted}; they wait for a run, by a sensor or "
            "`vectorize drain`",
            err=True,
        )
        return EXIT_NOT_IN_TIME
    return EXIT_FAILED_REQUESTS if any(event.status != "completed" for event in events.values()) else 0


@dataclass(frozen=True)
class _Contents:
    """Contents to be submitted: `data` of requests of one kind, or whole requests."""

    task_type: str
    data: Iterator[Any]
    are_requests: bool = False


def _common(fields: dict[str, Any]) -> dict[str, Any]:
    """Return the fields that every request gets; those that were not given are left out."""
    priority = fields.get("priority")
    if priority is not None and priority.isdecimal():
        fields["priority"] = int(priority)
    return {name: value for name, value in fields.items() if value not in (None, {})}


def _contents(text: str | None, file: TextIO | None, images: Sequence[str], documents: Sequence[str]) -> _Contents:
    from vectorize_pipelines.messaging.messages import TaskType

    given = [name for name, each in (("TEXT", text), ("--file", file)) if each is not None]
    given += [name for name, uris in (("--image", images), ("--document", documents)) if uris]
    if len(given) > 1:
        raise click.UsageError(f"give only one of {' and '.join(given)}")
    if images or documents:
        kind = TaskType.IMAGE if images else TaskType.DOCUMENT
        return _Contents(kind, map(_absolute, images or documents))
    if text is not None:
        return _Contents(TaskType.TEXT, iter([text]))
    if file is None and sys.stdin.isatty():
        raise click.UsageError("give TEXT, --file, --image or --document, or lines on stdin")
    lines = _lines(file if file is not None else sys.stdin)
    if file is not None and file.name.endswith(".jsonl"):
        return _Contents(TaskType.TEXT, _requests(lines, file.name), are_requests=True)
    return _Contents(TaskType.TEXT, lines)


def _absolute(uri: str) -> str:
    """Return a path as the absolute one that it is here: who reads the request works in another folder."""
    return str(Path(uri).absolute()) if uri.strip() and not scheme_of(uri) else uri


def _lines(file: TextIO) -> Iterator[str]:
    """Yield the lines that are not blank."""
    try:
        while line := file.readline(_LONGEST_LINE + 1):
            if len(line) > _LONGEST_LINE:
                raise click.UsageError(f"{file.name} has a line that is longer than {_LONGEST_LINE:,} characters")
            if line.strip():
                yield line.rstrip("\r\n")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{file.name} is not UTF-8: {error}") from None


def _requests(lines: Iterator[str], name: str) -> Iterator[dict[str, Any]]:
    for number, line in enumerate(lines, start=1):
        try:
            request = json.loads(line)
        except ValueError as error:
            raise click.UsageError(f"{name}, request {number} is no JSON: {error}") from None
        if not isinstance(request, dict) or "task_type" not in request:
            raise click.UsageError(f"{name}, request {number} is no object with a task_type")
        yield request


def _submit(client: "VectorizeClient", contents: _Contents, batch: bool, common: dict[str, Any]) -> Iterator[str]:
    from vectorize_pipelines.messaging.messages import TaskType

    if batch:
        if contents.are_requests:
            raise click.UsageError("--batch takes texts or URIs; a batch in a .jsonl file is a request of its own")
        data = list(contents.data)
        entries = data if contents.task_type == TaskType.TEXT else [_entry(contents.task_type, uri) for uri in data]
        if entries:
            yield client.submit(entries, **common)
        return
    while chunk := list(islice(contents.data, _CHUNK)):
        if contents.are_requests:
            requests = [{**request, **common} for request in chunk]
        else:
            requests = [{**_entry(contents.task_type, data), **common} for data in chunk]
        if "task_id" in common and len(chunk) > 1:
            raise click.UsageError("--id names a single request, and there are several; --batch makes them one")
        yield from client.submit_many(requests)


def _entry(task_type: str, data: Any) -> dict[str, Any]:
    return {"task_type": str(task_type), "data": data}


def _wait(client: "VectorizeClient", task_ids: list[str], timeout: float) -> "dict[str, ResultEvent]":
    click.echo(f"submitted {len(task_ids)}; waiting", err=True)
    return client.wait(task_ids, timeout=timeout)


def _print(task_ids: list[str], events: "dict[str, ResultEvent]", *, as_json: bool) -> None:
    """Print one row for each request, in the order in which they were submitted; `pending` where nothing is known."""
    if as_json:
        empty: dict[str, Any] = {
            "status": "pending",
            "collection": None,
            "vector_count": 0,
            "error": None,
            "run_id": None,
        }
        empty |= {"warnings": [], "truncated": 0}
        rows = [
            events[task_id].as_dict() if task_id in events else {"task_id": task_id, **empty, "timestamp": None}
            for task_id in task_ids
        ]
        click.echo(json.dumps(rows, ensure_ascii=False, indent=2))
        return
    for task_id in task_ids:
        event = events.get(task_id)
        if event is None:
            click.echo(task_id)
        elif event.error is not None:
            click.echo(f"{task_id}  {event.status.value}  {event.error['class']}: {event.error['message']}")
        else:
            click.echo(f"{task_id}  {event.status.value}  {event.vector_count} vectors in {event.collection}")
            for warning in event.warnings:
                show_notice(task_id, warning)
