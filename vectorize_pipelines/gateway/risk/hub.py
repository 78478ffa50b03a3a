"""Hands each gathered detection to every client that follows its camera. None waits for another.

A client that takes them too slowly is skipped ahead: it is told how many it has missed, and the latest of each camera.
Everything here belongs to the thread of the event loop: `risk.feed` publishes, `gateway.routes.risk` subscribes.
"""

import asyncio
import json
from collections import OrderedDict, deque
from collections.abc import Collection
from itertools import chain
from typing import Any, Literal, NamedTuple

from vectorize_pipelines.pipeline.assessments.gathering import GatheredDetection

#: Messages, and bytes of them, that may wait for one client. What waits for several is held once.
MOST_WAITING = 10_000
MOST_WAITING_BYTES = 16 * 2**20
#: Cameras whose latest detection is kept; beyond these, those that have been silent for longest are forgotten.
MOST_CAMERAS = 10_000


class StreamEndedError(Exception):
    """A stream ends; the message is for its client."""


class _Latest(NamedTuple):
    """The latest detection of a camera, and the message that says so."""

    detection: GatheredDetection
    state: str


def _fields(detection: GatheredDetection) -> str:
    """Return what clients are told of a detection, as JSON; ASCII, so that there are as many characters as bytes."""
    content: dict[str, Any] = {
        "camera_id": detection.camera_id,
        "message_id": detection.message_id,
        "timestamp": detection.timestamp.isoformat(),
        "complete": detection.is_complete,
        "risk_level": detection.risk_level,
        "risk_score": detection.risk_score,
        "groups_total": detection.groups_total,
        "groups": [group.to_dict() for group in detection.groups],
        "missing": detection.missing,
        "late": detection.is_late,
    }
    return json.dumps(content)


def _message(kind: Literal["detection", "state"], fields: str) -> str:
    return f'{{"type": "{kind}", {fields[1:]}'


def skipped(number: int) -> str:
    """Return what a client is told that has missed so many detections, as JSON."""
    return json.dumps({"type": "skipped", "detections": number})


class RiskSubscription:
    """The messages that wait for one client. `RiskHub.subscribe` makes it, `RiskHub.unsubscribe` ends it.

    cameras  those that it follows; none: all
    """

    def __init__(self, hub: "RiskHub", cameras: Collection[str], most_waiting: int, most_bytes: int) -> None:
        self.cameras = frozenset(cameras)
        self._hub = hub
        self._most_waiting, self._most_bytes = most_waiting, most_bytes
        #: Messages, and in front of them states, which are no detections that could be missed.
        self._states: deque[str] = deque(hub.states(self.cameras))
        self._waiting: deque[str] = deque()
        self._waiting_bytes = 0
        self._missed = 0
        self._woken = asyncio.Event()
        self._ended: str | None = None

    def put(self, text: str) -> None:
        """Have the client get a detection. Never waits."""
        if self._missed or not self._has_room(len(text)):
            self._missed += len(self._waiting) + 1
            self._waiting.clear()
            self._waiting_bytes = 0
        else:
            self._waiting.append(text)
            self._waiting_bytes += len(text)
        self._woken.set()

    def end(self, reason: str) -> None:
        """End the stream, now: what waits is not sent any more."""
        self._ended = self._ended or reason
        self._woken.set()

    async def next(self, seconds: float) -> str | None:
        """Return what the client gets next; None where nothing has come for so long. Raises `StreamEndedError`."""
        while self._ended is None:
            if self._missed:
                missed, self._missed = self._missed, 0
                self._states = deque(self._hub.states(self.cameras))
                return skipped(missed)
            if self._states:
                return self._states.popleft()
            if self._waiting:
                text = self._waiting.popleft()
                self._waiting_bytes -= len(text)
                return text
            self._woken.clear()
            try:
                async with asyncio.timeout(seconds):
                    await self._woken.wait()
            except TimeoutError:
                return None
        raise StreamEndedError(self._ended)

    def _has_room(self, size: int) -> bool:
        """Return whether so many bytes may wait, too; a message that is larger than all may wait alone."""
        if not self._waiting:
            return True
        return len(self._waiting) < self._most_waiting and self._waiting_bytes + size <= self._most_bytes


class RiskHub:
    """The clients that listen, and the latest detection of each camera."""

    def __init__(
        self,
        *,
        most_waiting: int = MOST_WAITING,
        most_bytes: int = MOST_WAITING_BYTES,
        most_cameras: int = MOST_CAMERAS,
    ) -> None:
        self._most_waiting, self._most_bytes, self._most_cameras = most_waiting, most_bytes, most_cameras
        #: The camera that was heard of last comes last.
        self._latest: OrderedDict[str, _Latest] = OrderedDict()
        self._everything: set[RiskSubscription] = set()
        self._of_camera: dict[str, set[RiskSubscription]] = {}
        self._ended: str | None = None

    def states(self, cameras: Collection[str]) -> list[str]:
        """Return the latest detection of each of these cameras, of all where none is named, as messages."""
        named = self._latest if not cameras else [each for each in self._latest if each in cameras]
        return [self._latest[camera_id].state for camera_id in named]

    def subscribe(self, cameras: Collection[str] = ()) -> RiskSubscription:
        """Return what gets the latest detection of each of these cameras, and every one from now on."""
        subscription = RiskSubscription(self, cameras, self._most_waiting, self._most_bytes)
        if self._ended is not None:
            subscription.end(self._ended)
        for each in self._sets_of(subscription):
            each.add(subscription)
        return subscription

    def unsubscribe(self, subscription: RiskSubscription) -> None:
        """Forget it; a second call does nothing."""
        self._everything.discard(subscription)
        for camera_id in subscription.cameras & self._of_camera.keys():
            self._of_camera[camera_id].discard(subscription)
            if not self._of_camera[camera_id]:
                del self._of_camera[camera_id]

    def publish(self, detection: GatheredDetection) -> bool:
        """Hand on a detection, and return whether it is the latest of its camera now."""
        of_camera = self._of_camera.get(detection.camera_id, ())
        fields = _fields(detection)
        if self._everything or of_camera:
            text = _message("detection", fields)
            for subscription in chain(self._everything, of_camera):
                subscription.put(text)
        return self._keep(detection, fields)

    def end(self, reason: str) -> None:
        """End every stream, and each that begins later; a second call does nothing."""
        self._ended = self._ended or reason
        for subscription in self._everything.union(*self._of_camera.values()):
            subscription.end(self._ended)

    def _sets_of(self, subscription: RiskSubscription) -> list[set[RiskSubscription]]:
        if not subscription.cameras:
            return [self._everything]
        return [self._of_camera.setdefault(camera_id, set()) for camera_id in subscription.cameras]

    def _keep(self, detection: GatheredDetection, fields: str) -> bool:
        latest = self._latest.get(detection.camera_id)
        if latest is not None and (detection.is_late or detection.is_before(latest.detection)):
            return False
        self._latest[detection.camera_id] = _Latest(detection, _message("state", fields))
        self._latest.move_to_end(detection.camera_id)
        if len(self._latest) > self._most_cameras:
            self._latest.popitem(last=False)
        return True
