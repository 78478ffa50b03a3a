"""`vectorize dead-letters`: messages that failed for a reason of their own: what, why, and once more."""

import base64
import json
from collections import Counter
from dataclasses import asdict
from itertools import islice
from typing import TYPE_CHECKING, Any

import click

from vectorize_pipelines.cli.tables import print_table
from vectorize_pipelines.state.home import enter_home

if TYPE_CHECKING:
    from vectorize_pipelines.messaging.dead_letters import StoredLetter
    from vectorize_pipelines.messaging.replay import ReplayCounts

EXIT_NOT_FOUND = 1


@click.group()
def command() -> None:
    """List, show and replay messages that failed for a reason of their own."""


@command.command("list")
@click.option("--reason", metavar="CLASS", help="Only those with this error class, such as InvalidMessageError.")
@click.option("--limit", type=click.IntRange(min=1), default=100, show_default=True, help="At most so many.")
@click.option("--all", "include_replayed", is_flag=True, help="Also those that have been replayed.")
@click.option("--json", "as_json", is_flag=True, help="Print the letters as JSON, without the messages themselves.")
def list_letters(reason: str | None, limit: int, include_replayed: bool, as_json: bool) -> None:
    """List what failed and has not been replayed: requests, then detections and groups to be assessed."""
    from vectorize_pipelines.messaging.dead_letters import read_dead_letters

    settings = enter_home().kafka
    found = read_dead_letters(settings, reason=reason, include_replayed=include_replayed)
    letters = list(islice(found, limit))
    if as_json:
        click.echo(json.dumps([_summary(stored) for stored in letters], ensure_ascii=False, indent=2))
        return
    print_table(("id", "failed at", "reason", "key", "message"), map(_row, letters), right=("id",))
    counts = Counter(stored.letter.error_class if stored.letter else "not of this project" for stored in letters)
    click.echo(", ".join(f"{number} {name}" for name, number in counts.most_common()) or "no dead letters", err=True)


@command.command()
@click.argument("letter_id", metavar="ID")
@click.option("--json", "as_json", is_flag=True, help="Print the letter as JSON.")
def show(letter_id: str, as_json: bool) -> int:
    """Show one dead letter with its message. Exits with 1 where there is none with this ID (see `list`)."""
    from vectorize_pipelines.messaging.dead_letters import read_dead_letters

    settings = enter_home().kafka
    stored = next(iter(read_dead_letters(settings, ids=[letter_id], include_replayed=True)), None)
    if stored is None:
        click.echo(f"error: there is no dead letter {letter_id}; `vectorize dead-letters list` has the ids", err=True)
        return EXIT_NOT_FOUND
    whole = {**_summary(stored), **_content(stored)}
    if as_json:
        click.echo(json.dumps(whole, ensure_ascii=False, indent=2))
        return 0
    rows = [
        (name, _printable(content) if isinstance(content, str) else json.dumps(content))
        for name, content in whole.items()
        if content is not None
    ]
    print_table(("field", "content"), rows)
    return 0


@command.command()
@click.option("--reason", metavar="CLASS", help="Only those with this error class.")
@click.option("--id", "ids", multiple=True, metavar="ID", help="Only this letter (see `list`); may be repeated.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many.")
@click.option("--json", "as_json", is_flag=True, help="Print the counts as JSON.")
def replay(reason: str | None, ids: tuple[str, ...], limit: int | None, as_json: bool) -> int:
    """Send dead letters back to their topics, each once: key, message, headers and time as they were.

    Exits with 1 where nothing that waits has an --id.
    """
    from vectorize_pipelines.messaging.replay import replay as replay_letters

    counts = replay_letters(enter_home().kafka, reason=reason, ids=ids, limit=limit)
    if as_json:
        click.echo(json.dumps(asdict(counts), ensure_ascii=False, indent=2))
    else:
        _say_replayed(counts)
    if ids and not counts.replayed + counts.expired + counts.omitted:
        which = "such an id" if reason is None else f"such an id and the reason {reason}"
        click.echo(f"error: no dead letter that waits has {which}; `vectorize dead-letters list` has them", err=True)
        return EXIT_NOT_FOUND
    return 0


def _say_replayed(counts: "ReplayCounts") -> None:
    click.echo(f"replayed {counts.replayed}, left out {counts.left_out}")
    for topic, number in counts.topics.items():
        click.echo(f"  {number:>7} to {topic}")
    if counts.expired:
        click.echo(
            f"kept {counts.expired} that are older than what their topics keep; raise retention.ms of those first",
            err=True,
        )
    if counts.omitted:
        click.echo(
            f"kept {counts.omitted} whose message was too large to be kept with them: `show` says where it lies",
            err=True,
        )
    if counts.foreign:
        click.echo(f"kept {counts.foreign} messages that were not written by this project", err=True)


def _summary(stored: "StoredLetter") -> dict[str, Any]:
    """The same keys for every letter; null where a message is not of this project."""
    letter = stored.letter
    return {
        "id": stored.id,
        "failed_at": stored.failed_at.isoformat(),
        "replayed": stored.is_replayed,
        "key": letter.key.decode("utf-8", "replace") if letter and letter.key is not None else None,
        "error_class": letter.error_class if letter else None,
        "error_message": letter.error_message if letter else None,
        "stage": letter.stage if letter else None,
        "attempts": letter.attempts if letter else None,
        "run_id": letter.run_id if letter else None,
        "topic": letter.origin.topic if letter else None,
        "partition": letter.origin.partition if letter else None,
        "offset": letter.origin.offset if letter else None,
        "timestamp_ms": letter.origin.timestamp_ms if letter else None,
        "omitted_bytes": letter.omitted_bytes if letter else None,
    }


def _row(stored: "StoredLetter") -> tuple[str, ...]:
    row = _summary(stored)
    replayed = "  (replayed)" if stored.is_replayed else ""
    return (
        row["id"],
        row["failed_at"][:19],
        row["error_class"] or "not of this project",
        _printable(row["key"]),
        _printable(row["error_message"]).replace("\n", " ") + replayed,
    )


def _content(stored: "StoredLetter") -> dict[str, Any]:
    """The message itself: as text, and as base64 where it is none."""
    letter = stored.letter
    headers = [{"name": name, **_readable(content)} for name, content in letter.headers] if letter else None
    value = _readable(letter.value if letter else None)
    return {"value": value["text"], "value_base64": value["base64"], "headers": headers}


def _readable(content: bytes | None) -> dict[str, str | None]:
    if content is None:
        return {"text": None, "base64": None}
    try:
        return {"text": content.decode(), "base64": None}
    except UnicodeDecodeError:
        return {"text": None, "base64": base64.b64encode(content).decode()}


def _printable(text: str | None) -> str:
    """A stranger's text without what would move a terminal's cursor."""
    return "".join(each if each.isprintable() or each in "\n\t" else "\N{REPLACEMENT CHARACTER}" for each in text or "")
