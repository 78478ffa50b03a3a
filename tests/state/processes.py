"""What tests of the database do in processes of their own."""

import sys

from tests.state.rows import row
from vectorize_pipelines.messaging.callbacks import CallbackSender
from vectorize_pipelines.settings import load_settings
from vectorize_pipelines.state import leases
from vectorize_pipelines.state.ledger import RequestLedger
from vectorize_pipelines.state.versions import SourceVersions


def deliver(home: str, url: str) -> None:
    """Deliver the callbacks that are due: a process that may be killed meanwhile."""
    callbacks = {"allow_private": True}
    sender = CallbackSender.open(load_settings(home=home, callbacks=callbacks, ledger={"url": url} if url else {}))
    sender.deliver_due()


def note(home: str) -> None:
    """Record a request while another process holds the database."""
    ledger = RequestLedger.open(load_settings(home=home))
    print("noting", flush=True)
    ledger.record([row("noted")])


def hold(home: str, url: str) -> None:
    """Hold the lock of a collection until the process is killed or its stdin is closed."""
    leases.LEASE_SECONDS = 2.5
    settings = load_settings(home=home, ledger={"url": url} if url else {})
    with SourceVersions.open(settings).exclusive("texts"):
        print("held", flush=True)
        sys.stdin.read()
