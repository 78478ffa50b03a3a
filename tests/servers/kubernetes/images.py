"""What stands for a container image in tests: this machine's own root folder, which each container sees a copy of."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Image:
    """The environment that an image sets, its working directory, and folders of this machine that it has.

    The folders are seen at their own paths, read-only: for those that are mounts, or that a volume of the pod hides.
    """

    environment: Mapping[str, str]
    working_directory: str = "/"
    folders: tuple[Path, ...] = field(default=())
