"""Devices: their names, which one `auto` stands for, what each is and has free. Called when an encoder is loaded."""

import os
import platform
import re
from pathlib import Path

from vectorize_pipelines.core.extras import is_installed, missing
from vectorize_pipelines.encoders.hardware.machine import available_memory, cpu_flags, cpu_identity
from vectorize_pipelines.errors import SettingsError

DEVICES = ("auto", "cpu", "cuda", "cuda:N", "mps")

#: What a driver that torch could use leaves in the file system, in Linux itself and under Windows' WSL.
_DRIVER_FILES = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")


def resolve_device(device: str) -> str:
    """Return `cuda`, `mps` or `cpu` for `auto`; a known name unchanged. Raises `SettingsError` naming the choices.

    torch is asked only where the machine looks as if it had an accelerator, so that a process on a machine
    without one need not import it. Without torch `auto` is the CPU.
    """
    name = device.strip().lower()
    if name != "auto":
        if not re.fullmatch(r"cpu|mps|cuda(:\d+)?", name):
            raise SettingsError(f"unknown device {device!r}; choose one of {', '.join(DEVICES)}")
        _check(name)
        return name
    if _may_have_accelerator() and is_installed("torch"):
        import torch

        if torch.cuda.is_available():
            return "cuda"
        if torch.backends.mps.is_available():
            return "mps"
    return "cpu"


def device_kind(device: str) -> str:
    """Return the kind of a device: `cuda` for `cuda:1`."""
    return device.partition(":")[0]


def shard_index(tag: str) -> int:
    """Return the number of a run's shard, from its tag `vectorize/shard`: `1/4` (the second of four) or `1`.

    Raises `SettingsError` for anything else.
    """
    found = re.fullmatch(r"(\d+)(?:/(\d+))?", tag.strip(), re.ASCII)
    if found is None or (found[2] is not None and int(found[1]) >= int(found[2])):
        raise SettingsError(f"the run's tag vectorize/shard is {tag!r}; give the shard's number and count, as in 0/4")
    return int(found[1])


def device_of_shard(device: str, shard: int | None, gpus: int) -> str:
    """Return the device for a run that owns this shard, on a machine with so many GPUs: shards go round the GPUs.

    A device that is named in full stays; so does every one where there is no shard or at most one GPU.
    """
    if shard is None or gpus < 2 or device.strip().lower() not in {"auto", "cuda"}:
        return device
    return f"cuda:{shard % gpus}"


def cuda_devices() -> list[str]:
    """Return the names of the GPUs that torch sees, in the order of their numbers."""
    if not _may_have_accelerator() or platform.system() == "Darwin" or not is_installed("torch"):
        return []
    import torch

    if not torch.cuda.is_available():
        return []
    return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]


def device_identity(device: str) -> str:
    """Return the same for two devices that compute alike: the CPU's identity, or the chip's name and its abilities."""
    kind = device_kind(device)
    if kind != "cuda":
        return cpu_identity() if kind == "cpu" else f"{kind} of {cpu_identity()}"
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"


def torch_precisions(device: str) -> tuple[str, ...]:
    """Return what torch computes fast on a device, fastest first; float32 is always the last."""
    kind = device_kind(device)
    if kind == "cpu":
        return ("bfloat16", "float32") if cpu_flags() & {"avx512_bf16", "amx_bf16"} else ("float32",)
    if kind == "mps":
        return ("float16", "float32")
    import torch

    major, _ = torch.cuda.get_device_capability(device)
    if major >= 8:  # both in the tensor cores; float16 is nearer to float32 but overflows sooner
        return ("bfloat16", "float16", "float32")
    return ("float16", "float32") if major == 7 else ("float32",)


def free_memory(device: str) -> int:
    """Return the bytes that a model may take on a device now, as the driver or the operating system says."""
    kind = device_kind(device)
    if kind == "cpu":
        return available_memory()
    import torch

    if kind == "mps":
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    free, _ = torch.cuda.mem_get_info(device)
    # What torch holds without using it is free for this process only.
    return int(free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device))


def _may_have_accelerator() -> bool:
    if platform.system() == "Darwin":
        return platform.machine() == "arm64"
    return os.name == "nt" or any(Path(path).exists() for path in _DRIVER_FILES)


def _check(name: str) -> None:
    """Refuse a device that this machine has not."""
    if name == "cpu":
        return
    lacking = missing(f"device {name}", "torch")
    if lacking is not None:
        raise SettingsError(lacking)
    import torch

    if name == "mps":
        found = int(torch.backends.mps.is_available())
    else:
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    wanted = int(name.partition(":")[2] or 0)
    if wanted >= found:
        has = f"torch sees {found} of this kind" if found else "torch sees none of this kind"
        raise SettingsError(f"device {name} is not there: {has}; choose auto or cpu (the setting encoder.device)")
