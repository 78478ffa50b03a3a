"""What this machine computes with: cores, what the CPU can do, and the identity of each chip. Called by engines."""

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

from vectorize_pipelines.encoders.devices import device_kind

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """Cores that this process may use: a core's two hardware threads count once, a container's quota binds."""
    logical = _logical_cores()
    cores = {_read(Path(_SIBLINGS.format(each))) or str(each) for each in logical}
    return max(1, min(len(cores), _quota(len(logical))))


@cache
def cpu_identity() -> str:
    """Model of the CPU and what its instruction set can do: two CPUs with the same one compute alike."""
    facts = _cpu_facts()
    names = ("model name", "cpu family", "model", "stepping", "flags", "Features")
    known = [facts[name] for name in names if name in facts]
    name = facts.get("model name") or platform.processor() or platform.machine()
    digest = hashlib.blake2b("\n".join(known or [name]).encode(), digest_size=4).hexdigest()
    return f"{name} {digest}"


def cpu_flags() -> frozenset[str]:
    """Names of the CPU's instruction sets as Linux gives them, e.g. `avx512_bf16`; empty where it does not."""
    facts = _cpu_facts()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def device_identity(device: str) -> str:
    """Two devices with the same one compute alike: the CPU's identity, or the chip's name and its abilities."""
    kind = device_kind(device)
    if kind != "cuda":
        return cpu_identity() if kind == "cpu" else f"{kind} of {cpu_identity()}"
    import torch

    major, minor = torch.cuda.get_device_capability(device)
    return f"{torch.cuda.get_device_name(device)} {major}.{minor}"


@cache
def _cpu_facts() -> dict[str, str]:
    described = _read(Path("/proc/cpuinfo")).partition("\n\n")[0]
    fields = dict(line.split(":", 1) for line in described.splitlines() if ":" in line)
    return {name.strip(): value.strip() for name, value in fields.items()}


def _logical_cores() -> list[int]:
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _quota(otherwise: int) -> int:
    """Whole CPUs that the control group grants: `cpu.max` holds microseconds of CPU per period, or `max`."""
    granted, _, period = _read(_CPU_QUOTA).partition(" ")
    if not granted.isdigit() or not period.strip().isdigit():
        return otherwise
    return max(1, int(granted) // int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
