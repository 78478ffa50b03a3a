"""Images decoded in processes of their own, so that no image can end the run, take it over or fill its memory.

Called by the encoders of images, by those who read an image's header, and for thumbnails. The processes are confined
(`vectorize_pipelines.sandbox`): they have no network and see no files. What comes out of them is small, and of a size
that is known before.
"""

import threading
from concurrent.futures import Future
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import TypeAlias

from vectorize_pipelines.core.image_limits import ImageLimits
from vectorize_pipelines.images import errors
from vectorize_pipelines.images.decoding import ImageHeader, formats_taken, read_image
from vectorize_pipelines.images.errors import ImageCrashedError, ImageMemoryError, ImageTimeoutError
from vectorize_pipelines.images.preprocessing import Pixels, Preprocessing
from vectorize_pipelines.sandbox import (
    AnswerLimits,
    ByteBudget,
    Failures,
    InvalidAnswerError,
    Message,
    ProcessPool,
    ServiceSpec,
    known_errors,
)

#: The errors that a decoding process may report: those of this package.
KNOWN_ERRORS = known_errors(errors)
SERVICE = "vectorize_pipelines.images.worker:service"
SMALL_ANSWER_BYTES = 1_000


class _SharedPool:
    """The processes behind all decoders of one kind, and what they may take together."""

    def __init__(self, limits: ImageLimits, processes: int, service: str) -> None:
        sizes = {"max_bytes": limits.max_bytes, "max_pixels": limits.max_pixels}
        spec = ServiceSpec(service, {"limits": sizes}, limits.memory_bytes, limits.timeout_seconds)
        self.processes = ProcessPool(processes, spec, _failures(limits))
        self.budget = ByteBudget(limits.decoding_bytes)
        self.users = 0


_Key: TypeAlias = tuple[ImageLimits, int, str]

_pools: dict[_Key, _SharedPool] = {}
_lock = threading.Lock()


class ImageDecoders:
    """Processes that decode images, started when first needed, at most `processes` of them.

    Decoders of one kind share their processes, so that what is decoded at the same time is bounded for all of this
    process, whatever models are loaded. Thread-safe.
    """

    def __init__(self, limits: ImageLimits, processes: int, service: str = SERVICE) -> None:
        """Take `service`, which the processes run."""
        self._limits = limits
        self._key: _Key = (limits, processes, service)
        with _lock:
            if self._key not in _pools:
                _pools[self._key] = _SharedPool(*self._key)
            self._pool = _pools[self._key]
            self._pool.users += 1
        self._open = True

    def submit(self, content: bytes | Path, preprocessing: Preprocessing) -> Future[Pixels]:
        """Have an image decoded and prepared for a model: uint8, shape (height, width, 3).

        The future raises as `decoding.decode`, and `ImageTimeoutError`, `ImageMemoryError` or `ImageCrashedError`.
        """
        return self._pool.processes.submit(partial(self._pixels, content, preprocessing))

    def header(self, content: bytes) -> ImageHeader:
        """Wait for what the image's header says, and return it. Raises as the future of `submit`."""
        task = Message({"preprocessing": None}, read_image(content, self._limits))
        with self._pool.processes.process() as process:
            return process.call(task, AnswerLimits(SMALL_ANSWER_BYTES, 0), _as_header, wanted=self._is_open)

    def thumbnail(self, content: bytes, longest_side: int) -> Pixels:
        """Return the image in its own proportions, no side longer than this: uint8, shape (height, width, 3).

        Waits for it. Raises as the future of `submit`.
        """
        task = Message({"preprocessing": None, "thumbnail": longest_side}, read_image(content, self._limits))
        limits = AnswerLimits(SMALL_ANSWER_BYTES, 3 * longest_side**2)
        read = partial(_as_thumbnail, longest_side)
        with self._pool.processes.process() as process:
            return process.call(task, limits, read, hold=self._pool.budget.hold, wanted=self._is_open)

    def close(self) -> None:
        """End the processes, unless other decoders share them; a second call does nothing."""
        with _lock:
            if not self._open:
                return
            self._open = False
            self._pool.users -= 1
            if self._pool.users > 0:
                return
            del _pools[self._key]
        self._pool.processes.close()

    def _pixels(self, content: bytes | Path, preprocessing: Preprocessing) -> Pixels:
        data = read_image(content, self._limits)
        shape = (preprocessing.height, preprocessing.width, 3)
        size = shape[0] * shape[1] * shape[2]

        def pixels(answer: Message) -> Pixels:
            import numpy as np

            if len(answer.body) != size:
                raise InvalidAnswerError("pixels of another size")
            return np.frombuffer(answer.body, dtype=np.uint8).reshape(shape)

        task = Message({"preprocessing": asdict(preprocessing)}, data)
        with self._pool.processes.process() as process:
            return process.call(
                task,
                AnswerLimits(SMALL_ANSWER_BYTES, size),
                pixels,
                hold=self._pool.budget.hold,
                wanted=self._is_open,
            )

    def _is_open(self) -> bool:
        return self._open


def _as_header(answer: Message) -> ImageHeader:
    value = answer.header
    if not isinstance(value, list) or len(value) != 3 or value[0] not in formats_taken():
        raise InvalidAnswerError("a header that is none")
    if not all(type(side) is int and 0 < side < 2**31 for side in value[1:]):
        raise InvalidAnswerError("an image of no size")
    return ImageHeader(*value)


def _as_thumbnail(longest_side: int, answer: Message) -> Pixels:
    import numpy as np

    size = answer.header
    if not isinstance(size, list) or len(size) != 2:
        raise InvalidAnswerError("a thumbnail without a size")
    if not all(type(side) is int and 0 < side <= longest_side for side in size):
        raise InvalidAnswerError("a thumbnail of another size")
    width, height = size
    if len(answer.body) != width * height * 3:
        raise InvalidAnswerError("pixels of another size")
    return np.frombuffer(answer.body, dtype=np.uint8).reshape(height, width, 3)


def _failures(limits: ImageLimits) -> Failures:
    return Failures(
        noun="image decoder",
        done="decoded",
        known=KNOWN_ERRORS,
        crashed=ImageCrashedError,
        timeout=lambda: ImageTimeoutError(
            f"took longer than {limits.timeout_seconds:g} s to decode; "
            "exclude it, or raise VECTORIZE_IMAGES__TIMEOUT_SECONDS"
        ),
        memory=lambda: ImageMemoryError(
            f"needs more than {limits.memory_bytes:,} bytes of memory to decode; "
            "scale it down, or raise VECTORIZE_IMAGES__MEMORY_BYTES"
        ),
    )
