"""Names of devices, and which one `auto` stands for. Called when an encoder is loaded."""

import os
import platform
import re
from pathlib import Path

from vectorize_pipelines.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")

#: What a driver that torch could use leaves in the file system, in Linux itself and under Windows' WSL.
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def resolve_device(device: str) -> str:
    """`auto` -> `cuda`, `mps` or `cpu`; a known name unchanged. Raises `SettingsError` naming the choices.

    torch is asked only where the machine looks as if it had an accelerator, so that a process on a machine
    without one need not import it.
    """
    name = device.strip().lower()
    if name != "auto":
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise SettingsError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
        _check(name)
        return name
    if _may_have_accelerator():
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
    return "cpu"


def device_kind(device: str) -> str:
    """`cuda:1` -> `cuda`."""
    return device.partition(":")[0]


def _may_have_accelerator() -> bool:
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return os.name == "nt" or any(Path(path).exists() for path in _DRIVER_FILES)


def _check(name: str) -> None:
    """Refuses a device that this machine has not."""
    if name == "cpu":
        return
    import torch

    if name == "mps":
        found = int(torch.backends.mps.is_available())
    else:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = int(name.partition(":")[2] or 0)
    if wanted >= found:
        has = f"torch sees {found} of this kind" if found else "torch sees none of this kind"
        raise SettingsError(f"device {name} is not there: {has}; choose auto or cpu")
