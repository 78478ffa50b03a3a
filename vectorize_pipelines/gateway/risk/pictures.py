"""Pictures of the groups that are assessed, in memory only: those just arrived, and those of what clients are shown.

They are kept as tasks bring them, in base64: few are ever asked for. `risk.feed` fills it, `gateway.routes.risk` asks.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable
from dataclasses import dataclass

from vectorize_pipelines.core.base64_text import decode_base64
from vectorize_pipelines.messaging.picture_formats import media_type_of

#: For what has just arrived, and as much for what is shown.
MAX_BYTES = 64 * 2**20
#: Detections of a camera whose pictures stay: a client may ask for one a moment after the next has come.
SHOWN = 4
#: Cameras with pictures that are shown; beyond these, those that have been silent for longest make room.
MOST_CAMERAS = 10_000


@dataclass(frozen=True, slots=True)
class Picture:
    """A picture as it is sent to a browser."""

    content: bytes
    media_type: str


class PictureStore:
    """Pictures by the id of their task, each part bounded to `max_bytes` of base64, the shown ones in cameras, too."""

    def __init__(self, max_bytes: int = MAX_BYTES, max_cameras: int = MOST_CAMERAS) -> None:
        self._max_bytes, self._max_cameras = max_bytes, max_cameras
        #: Task id -> picture; the oldest comes first.
        self._arrived: OrderedDict[str, str] = OrderedDict()
        self._arrived_bytes = 0
        #: Camera -> pictures by task id of each of its latest detections; the camera that was longest silent is first.
        self._shown: OrderedDict[str, deque[dict[str, str]]] = OrderedDict()
        self._camera_of: dict[str, str] = {}
        self._shown_bytes = 0

    @property
    def cameras(self) -> int:
        """The number of cameras of which something is shown."""
        return len(self._shown)

    @property
    def held_bytes(self) -> tuple[int, int]:
        """The characters of base64 of what has just arrived, and of what is shown."""
        return self._arrived_bytes, self._shown_bytes

    def put(self, task_id: str, image_base64: str) -> None:
        """Take up the picture of a task; one that is there already stays."""
        if task_id in self._arrived or task_id in self._camera_of:
            return
        self._arrived[task_id] = image_base64
        self._arrived_bytes += len(image_base64)
        while self._arrived_bytes > self._max_bytes:
            _, gone = self._arrived.popitem(last=False)
            self._arrived_bytes -= len(gone)

    def show(self, camera_id: str, task_ids: Iterable[str]) -> None:
        """Have the pictures of a camera's latest detection stay, and those of an earlier one go.

        A detection without pictures changes nothing.
        """
        pictures = {}
        for task_id in task_ids:
            found = self._arrived.pop(task_id, None)
            if found is not None:
                self._arrived_bytes -= len(found)
                pictures[task_id] = found
        if not pictures:
            return
        of_camera = self._shown.setdefault(camera_id, deque())
        of_camera.append(pictures)
        self._shown.move_to_end(camera_id)
        self._shown_bytes += sum(map(len, pictures.values()))
        self._camera_of.update(dict.fromkeys(pictures, camera_id))
        while len(of_camera) > SHOWN:
            self._drop(of_camera.popleft())
        while self._shown_bytes > self._max_bytes or len(self._shown) > self._max_cameras:
            _, detections = self._shown.popitem(last=False)
            for each in detections:
                self._drop(each)

    def get(self, task_id: str) -> Picture | None:
        """Return a picture; None where it is gone, was none, or is of no kind that browsers show."""
        found = self._arrived.get(task_id)
        if found is None and task_id in self._camera_of:
            found = next(each[task_id] for each in self._shown[self._camera_of[task_id]] if task_id in each)
        return None if found is None else _decoded(found)

    def _drop(self, pictures: dict[str, str]) -> None:
        for task_id, picture in pictures.items():
            del self._camera_of[task_id]
            self._shown_bytes -= len(picture)


def _decoded(image_base64: str) -> Picture | None:
    try:
        content = decode_base64(image_base64.rpartition(",")[2])
    except ValueError:
        return None
    media_type = media_type_of(content)  # of formats in which no script can be
    return None if media_type is None else Picture(content, media_type)
