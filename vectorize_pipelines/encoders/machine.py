"""What this machine computes with: CPU cores and the CPU's identity. Called by engines that run on the CPU."""

import hashlib
import os
import platform
from functools import cache
from pathlib import Path

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
    described = _read(Path("/proc/cpuinfo")).partition("\n\n")[0]
    fields = dict(line.split(":", 1) for line in described.splitlines() if ":" in line)
    facts = {name.strip(): value.strip() for name, value in fields.items()}
    names = ("model name", "cpu family", "model", "stepping", "flags", "Features")
    known = [facts[name] for name in names if name in facts]
    name = facts.get("model name") or platform.processor() or platform.machine()
    digest = hashlib.blake2b("\n".join(known or [name]).encode(), digest_size=4).hexdigest()
    return f"{name} {digest}"


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
