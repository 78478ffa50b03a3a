"""The delivery of callbacks: what became of a request is posted, at least once, or given up with a reason.

`CallbackDelivery` delivers them during a run; a schedule delivers what is left over. They wait in the table of
`state.callbacks`.
"""

import hashlib
import hmac
import json
import logging
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Self

from vectorize_pipelines.core.guarded_http import Answer, Deadline, PrivateAddressError, exchange, parse
from vectorize_pipelines.errors import ItemError, LedgerError, RefusedUriError
from vectorize_pipelines.messaging.events import ResultEvent
from vectorize_pipelines.messaging.messages import Origin
from vectorize_pipelines.settings import CallbackSettings, Settings
from vectorize_pipelines.state.callbacks import KEY, CallbackOutbox, CallbackRow, CallbackState, Outcome

logger = logging.getLogger(__name__)

SIGNATURE_HEADER = "X-Vectorize-Signature"
DELIVERY_HEADER = "X-Vectorize-Delivery"
#: Pause after the first failure; each next is three times as long.
FIRST_PAUSE_SECONDS = 10.0
LONGEST_PAUSE_SECONDS = 3600.0
#: Posted side by side, so that a server which does not answer holds up few others.
WORKERS = 8
#: Taken together by one process; another one takes them over when it has not finished in time.
CLAIMED_TOGETHER = 4 * WORKERS
#: Of looking for those whose pause has ended.
INTERVAL_SECONDS = 5.0
CLOSING_SECONDS = 10.0
_GONE = 410


@dataclass(frozen=True, slots=True)
class Deliveries:
    """The result of one call of `deliver_due`. `postponed` will be tried again, `given_up` will not."""

    delivered: int = 0
    postponed: int = 0
    given_up: int = 0

    def __add__(self, other: "Deliveries") -> "Deliveries":
        return Deliveries(
            self.delivered + other.delivered, self.postponed + other.postponed, self.given_up + other.given_up
        )


class CallbackSender:
    """A sender of the callbacks of an outbox. Safe for use by several threads. Every method may raise `LedgerError`."""

    def __init__(self, outbox: CallbackOutbox, settings: CallbackSettings, now: Callable[[], float] = time.time):
        """Take `now`, which returns seconds since 1970."""
        self.outbox = outbox
        self._settings = settings
        self._now = now

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the sender of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(CallbackOutbox.open(settings), settings.callbacks)

    def close(self) -> None:
        """Close the outbox; a second call does nothing."""
        self.outbox.close()

    def deliver_due(self, stop: threading.Event | None = None) -> Deliveries:
        """Post every callback that is due, several side by side; ends early, after those in hand, once `stop` is set.

        A process that is killed meanwhile may have posted a callback whose success it did not note: it is posted again
        a minute or two later.
        """
        lease_seconds = (CLAIMED_TOGETHER / WORKERS) * self._settings.timeout_seconds + 30
        total = Deliveries()
        with ThreadPoolExecutor(WORKERS, thread_name_prefix="vectorize-callback") as pool:
            while not (stop is not None and stop.is_set()):
                claimed = self.outbox.claim(CLAIMED_TOGETHER, lease_seconds)
                if not claimed:
                    break
                outcomes = list(pool.map(self._post, claimed))
                self.outbox.note(claimed, outcomes)
                total += _counted(outcomes)
        return total

    def _post(self, row: Any) -> Outcome:
        try:
            answer = self._send(row)
        except RefusedUriError as error:
            is_private = isinstance(error, PrivateAddressError)
            remedy = "; where it is meant, set callbacks.allow_private (VECTORIZE_CALLBACKS__ALLOW_PRIVATE=true)"
            return self._failed(row, f"{error}{remedy if is_private else ''}", final=True)
        except ItemError as error:
            return self._failed(row, str(error))
        if 200 <= answer.status < 300:
            return Outcome(CallbackState.DELIVERED)
        reason = f"the server answered {answer.status}"
        if 300 <= answer.status < 400:
            reason += "; redirects are not followed"
        return self._failed(row, reason, final=answer.status == _GONE, retry_after=answer.headers.get("retry-after"))

    def _send(self, row: Any) -> Answer:
        body = row.body.encode("utf-8")
        headers = {
            "Content-Type": "application/json",
            "User-Agent": "vectorize-pipelines",
            DELIVERY_HEADER: str(uuid.uuid5(uuid.NAMESPACE_OID, json.dumps([row[name] for name in range(len(KEY))]))),
        }
        if self._settings.secret is not None:
            headers[SIGNATURE_HEADER] = signature(self._settings.secret.get_secret_value(), int(self._now()), body)
        return exchange(
            "POST",
            parse(row.url),
            headers=headers,
            body=body,
            limit=0,
            allow_private=self._settings.allow_private,
            deadline=Deadline(self._settings.timeout_seconds),
        )

    def _failed(self, row: Any, reason: str, *, final: bool = False, retry_after: str | None = None) -> Outcome:
        attempts = row.attempts + 1
        if final or attempts >= self._settings.attempts:
            logger.warning("the callback of request %s is given up after attempt %d: %s", row.task_id, attempts, reason)
            return Outcome(CallbackState.FAILED, reason)
        pause = FIRST_PAUSE_SECONDS * 3 ** (attempts - 1)
        if retry_after is not None and retry_after.isdecimal() and len(retry_after) < 10:
            pause = max(pause, float(retry_after))
        return Outcome(CallbackState.WAITING, reason, min(pause, LONGEST_PAUSE_SECONDS))


class CallbackDelivery:
    """The delivery of callbacks beside a run, in a thread that starts with the first `deliver_soon`.

    What is not due when it is closed is left to the schedule. Where the database fails, the thread logs that and tries
    again: no callback is lost, since they wait in the table.
    """

    def __init__(self, sender: CallbackSender):
        self._sender = sender
        self._wake = threading.Event()
        self._closing = threading.Event()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.total = Deliveries()

    @classmethod
    def open(cls, settings: Settings) -> Self:
        """Return the delivery of an installation. Raises `SettingsError` and `LedgerError`."""
        return cls(CallbackSender.open(settings))

    def enqueue(self, rows: Sequence[CallbackRow]) -> None:
        """Promise callbacks, as `CallbackOutbox.enqueue` does; nothing is posted yet. Raises `LedgerError`."""
        self._sender.outbox.enqueue(rows)

    def deliver_soon(self) -> None:
        """Post what was promised: it can be kept now."""
        self._wake.set()
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="vectorize-callbacks", daemon=True)
            self._thread.start()

    def close(self) -> None:
        """Deliver what is due, for `CLOSING_SECONDS` at most and those in hand, and close the table."""
        self._closing.set()
        self._wake.set()
        if self._thread is not None:
            self._thread.join(CLOSING_SECONDS)
            self._stop.set()
            self._thread.join()
        self._sender.close()

    def _run(self) -> None:
        while True:
            self._wake.clear()
            last = self._closing.is_set()
            try:
                self.total += self._sender.deliver_due(self._stop)
            except LedgerError as error:
                logger.warning("callbacks wait: %s", error)
            if last:
                return
            self._wake.wait(INTERVAL_SECONDS)


def callback_row(url: str, event: ResultEvent, origin: Origin) -> CallbackRow:
    """Return the callback by which an event, as the results topic has it, is posted to a URL."""
    return CallbackRow(
        task_id=event.task_id,
        topic=origin.topic,
        partition=origin.partition,
        offset=origin.offset,
        url=url,
        body=event.to_json().decode(),
    )


def signature(secret: str, timestamp: int, body: bytes) -> str:
    """Return `t=<seconds since 1970>,v1=<HMAC-SHA256 of "t.body", hexadecimal>`.

    The receiver refuses an old `t`, so that a callback which somebody overheard is worth nothing later.
    """
    digest = hmac.new(secret.encode(), f"{timestamp}.".encode() + body, hashlib.sha256)
    return f"t={timestamp},v1={digest.hexdigest()}"


def _counted(outcomes: Sequence[Outcome]) -> Deliveries:
    states = [outcome.state for outcome in outcomes]
    return Deliveries(
        delivered=states.count(CallbackState.DELIVERED),
        postponed=states.count(CallbackState.WAITING),
        given_up=states.count(CallbackState.FAILED),
    )
