"""The errors that users see. Each says what was wrong, where, and what to do about it.

Every error of this project derives from `VectorizeError`; the command line prints its message without a
stack trace and exits with `exit_code`. Anything else that escapes is a defect of ours.
"""

from typing import Any


class VectorizeError(Exception):
    """Base of every error whose message is written for the user."""

    exit_code = 1


class SettingsError(VectorizeError):
    """A setting is missing, misspelt or has a bad value; the message names the field and its source."""

    exit_code = 2


class SourceError(VectorizeError):
    """A source as a whole cannot be read: a folder that does not exist, a bucket without permission."""

    exit_code = 3


class ItemError(VectorizeError):
    """One item cannot be embedded for a reason of its own; its neighbours are not affected.

    `retryable` is true where the same bytes may succeed another time (no permission, out of time). An attempt that may
    be costly is made `max_attempts` times at most, None: any number of times; then it waits for a change. `attempts` is
    how often it was tried before it failed so.
    """

    retryable = False
    max_attempts: int | None = None
    attempts = 1


class CostlyItemError(ItemError):
    """The item cost the process that reads it its time, its memory or its life: it is tried once more, then waits."""

    retryable = True
    max_attempts = 2


class UnreadableFileError(ItemError):
    """The bytes cannot be had: no permission, no such file, an error of the disk or the network."""

    retryable = True


class RefusedUriError(ItemError):
    """An address that is not asked: its scheme, host, folder or kind of address is not allowed here."""


class KilledRunsError(ItemError):
    """Runs died, again and again, while they had this item alone in hand. `attempts`: how many."""

    def __init__(self, message: str, attempts: int):
        super().__init__(message)
        self.attempts = attempts


class UnknownModelError(VectorizeError):
    """No encoder can be loaded under this name; the message says where it was looked for."""

    exit_code = 4


class UntrustedModelError(UnknownModelError):
    """What comes with a model would run code, or may: a configuration that names code, or pickled weights."""


class HubUnavailableError(UnknownModelError):
    """The hub cannot be reached, or answers that it is overloaded: the same call may succeed another time."""


class ModelNotFetchedError(UnknownModelError):
    """A model is not on this machine, and whoever asked wanted nothing fetched."""


class MissingExtraError(UnknownModelError):
    """A model needs a library that is not installed; the message has the command that installs it."""


class ModelTooLargeError(VectorizeError):
    """A model does not fit into the memory there is; said before it is loaded. Memory may be free another time."""

    exit_code = 4


class DeviceMemoryError(VectorizeError):
    """A single text does not fit into the memory that a loaded model leaves; said while it is encoded.

    Memory may be free another time.
    """

    exit_code = 4


class StoreError(VectorizeError):
    """The vector store refused or failed; nothing of the batch in hand has been acknowledged."""

    exit_code = 5


class StoreUnavailableError(StoreError):
    """The store is away, overloaded or full: the same call may succeed later, and whoever can wait tries it again."""


class CollectionNotFoundError(StoreError):
    """No collection or alias of this name exists in the store."""


class DamagedCollectionError(StoreError):
    """A collection cannot be read: a file of it is missing or damaged, and no earlier version of it is whole."""


class ModelMismatchError(StoreError):
    """A collection holds vectors of another model than the one asked for."""


class UnanswerableFilterError(StoreError):
    """A filter compares what the collection has no complete index of: the answer would be wrong. Another one may do."""


class LedgerError(VectorizeError):
    """The database of requests and versions refused or failed; nothing of the call in hand was written.

    The same call may succeed another time.
    """

    exit_code = 1


class StateError(VectorizeError):
    """A file of the installation cannot be used; the message names it and says what to do."""

    exit_code = 1


class DamagedStateError(StateError):
    """A file of the installation holds something that is not what was written. The same call fails again."""


class KafkaError(VectorizeError):
    """The Kafka cluster refused, failed or cannot be reached. The same call may succeed another time."""

    exit_code = 7


class KafkaNotConfiguredError(SettingsError):
    """No cluster is named in the settings."""


class RedisUnavailableError(VectorizeError):
    """The Redis server refused, failed or cannot be reached. The same call may succeed another time."""

    exit_code = 9


class KeysError(VectorizeError):
    """The state that the pool of API keys shares cannot be used. The same call may succeed another time."""

    exit_code = 9


class UnknownKeyError(VectorizeError):
    """No API key in the file has the name that was given. The same call fails again."""

    exit_code = 2


class NoKeyAvailableError(KeysError):
    """No API key could be had for a call: none is free in time, all are disabled, or none serves the model.

    `next_available_seconds`: when the next is free; None: not before somebody changes the keys.
    """

    def __init__(self, message: str, next_available_seconds: float | None = None):
        super().__init__(message)
        self.next_available_seconds = next_available_seconds


class NoSuitableKeyError(NoKeyAvailableError):
    """No API key in the file could ever serve a call. It needs a person, as a bad setting does: waiting is of no use.

    `most_tokens`: those that a key may take, where the call is too large for every one; None: no key has the model.
    """

    exit_code = 2

    def __init__(self, message: str, most_tokens: int | None = None):
        super().__init__(message)
        self.most_tokens = most_tokens


class DagsterUnavailableError(VectorizeError):
    """Dagster's web server does not answer, or answers that it failed. The same call may succeed another time."""


class ProviderUnavailableError(VectorizeError):
    """A provider of remote models failed, or did not answer, until the deadline. The same call may succeed later.

    `rate_limited`: the last answer was 429, so that waiting is all that is needed.
    """

    exit_code = 9

    def __init__(self, message: str, *, rate_limited: bool = False):
        super().__init__(message)
        self.rate_limited = rate_limited


class PaidItemError(ItemError):
    """A call to a provider that was answered, to no avail.

    `record`: what it took, as `state.provider_calls.CallRecord`; None where no provider was asked.
    """

    def __init__(self, message: str, record: Any = None):
        super().__init__(message)
        self.record = record


class ContentRefusedError(PaidItemError):
    """A provider refuses the content of one call: its policy, its size, its form. The same call is refused again."""


class TooManyTokensError(ItemError):
    """An item that has more tokens than any API key may take in a minute, as the keys are now."""

    retryable = True


class InvalidAnswerError(PaidItemError):
    """What a model answered is not what it was asked for, nor what it answered to a second question."""
