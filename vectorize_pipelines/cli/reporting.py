"""The end of a run in the command's process: the outcome, the errors, and the exit code."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from vectorize_pipelines.cli.showing import figures, show_notices

if TYPE_CHECKING:
    import dagster as dg

    from vectorize_pipelines.pipeline.stream import EmbeddingStream

EXIT_FAILED = 1
EXIT_SOME_FAILED = 6
EXIT_INTERRUPTED = 130
#: What Dagster makes of SIGINT and SIGTERM.
INTERRUPTED = "DagsterExecutionInterruptedError"


def report(
    result: "dg.ExecuteInProcessResult",
    stream: "EmbeddingStream | None",
    about: Mapping[str, Any],
    show: Callable[[Mapping[str, Any]], None],
    *,
    refused: Sequence[str],
    as_json: bool,
) -> int:
    """Tell what became of a run that embedded, and return the exit code.

    about    what the command says of the run, between its status and its figures
    show     prints the outcome for people; called where there is one
    refused  the figures that count what could not be embedded, or not all of it: with any the exit code is another
    """
    found = {**about, **figures(stream)}
    show_notices(found)
    return report_figures(result, found, None if stream is None else show, refused=refused, as_json=as_json)


def report_figures(
    result: "dg.ExecuteInProcessResult",
    found: Mapping[str, Any],
    show: Callable[[Mapping[str, Any]], None] | None,
    *,
    refused: Sequence[str],
    as_json: bool,
) -> int:
    """Tell what became of any run; `found` are its figures, `show` is None where it ended before it had any."""
    errors, exit_code = _errors_of(result)
    status = "succeeded" if result.success else "failed"
    outcome: dict[str, Any] = {"run_id": result.run_id, "status": status, **found, "errors": errors}
    if as_json:
        click.echo(json.dumps(outcome, ensure_ascii=False, indent=2))
    elif show is not None:
        show(outcome)
    for error in errors:
        click.echo(f"error: {error}", err=True)
    return EXIT_SOME_FAILED if result.success and any(outcome[figure] for figure in refused) else exit_code


def _errors_of(result: "dg.ExecuteInProcessResult") -> tuple[list[str], int]:
    """Return the errors, in the words meant for the user, and the exit code."""
    messages: list[str] = []
    exit_code = 0 if result.success else EXIT_FAILED
    for event in result.all_events:
        if event.is_step_failure:
            message, code = _failure_of_step(event)
            exit_code = exit_code if code is None else code
            messages.extend(message)
    messages.extend(
        f"check {check.check_name} failed: {check.description or 'see the run in the UI'}"
        for check in result.get_asset_check_evaluations()
        if not check.passed
    )
    return messages, exit_code


def _failure_of_step(event: "dg.DagsterEvent") -> tuple[list[str], int | None]:
    """Return the messages of a step that failed, and the exit code that its failure names, if it names one."""
    failure, error = event.step_failure_data.user_failure_data, event.step_failure_data.error
    if failure is not None and "exit_code" in failure.metadata:
        return [failure.description or ""], int(str(failure.metadata["exit_code"].value))
    if error is None:
        return [], None
    cause = error.cause or error
    if INTERRUPTED in (error.cls_name, cause.cls_name):
        return ["interrupted; what is written stays, and the same command goes on from there"], EXIT_INTERRUPTED
    return [f"{event.step_key}: {cause.message.strip()}"], None
