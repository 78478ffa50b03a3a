"""The machine: cores, what the CPU is and can do, free memory. Called by loads and by engines."""

import hashlib
import os
import platform
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
#: By the controllers' name in /proc/self/cgroup: where the groups lie, and the files of limit, usage and file pages.
_GROUP_FILES = {
    "": ("sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    "memory": ("sys/fs/cgroup/memory", "memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
}
_SIBLINGS = "/sys/devices/system/cpu/cpu{}/topology/thread_siblings_list"


def physical_cores() -> int:
    """Return the cores that this process may use: a core's hardware threads count once, a container's quota binds."""
    logical = _logical_cores()
    cores = {_read(Path(_SIBLINGS.format(each))) or str(each) for each in logical}
    return max(1, min(len(cores), _quota(len(logical))))


@cache
def cpu_identity() -> str:
    """Return the CPU's model and what its instruction set can do: two CPUs with the same one compute alike."""
    facts = _cpu_facts()
    names = ("model name", "cpu family", "model", "stepping", "flags", "Features")
    known = [facts[name] for name in names if name in facts]
    name = facts.get("model name") or platform.processor() or platform.machine()
    digest = hashlib.blake2b("\n".join(known or [name]).encode(), digest_size=4).hexdigest()
    return f"{name} {digest}"


def available_memory(root: Path = Path("/")) -> int:
    """Return the bytes that this process may still take: what the system has to spare, within its control groups.

    Without /proc, all of the machine's memory: macOS does not say what is to spare. `root` is for tests.
    """
    found = re.search(r"^MemAvailable:\s+(\d+) kB", _read(root / "proc/meminfo"), re.MULTILINE)
    if found is None:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return min([int(found[1]) * 1024, *_groups_leave(root)])


def _groups_leave(root: Path) -> Iterator[int]:
    """Yield the bytes that each control group of this process, up to the topmost, has left; of versions 2 and 1."""
    for line in _read(root / "proc/self/cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers not in {"", "memory"}:
            continue
        mount, limit, usage, cache = _GROUP_FILES[controllers]
        top = root / mount
        group = top / path.lstrip("/")
        # In a container the path may be the host's, which is not there: its own group is then at the top.
        for folder in (group, *group.parents) if group != top else (top,):
            most, used = _read(folder / limit), _read(folder / usage)
            if most.isdigit() and used.isdigit():
                # Pages of files count as used, though the kernel drops them when memory is wanted.
                dropped = re.search(rf"^{cache} (\d+)$", _read(folder / "memory.stat"), re.MULTILINE)
                yield max(0, int(most) - int(used) + (int(dropped[1]) if dropped else 0))
            if folder == top:
                break


def cpu_flags() -> frozenset[str]:
    """Return the CPU's instruction sets as Linux names them, e.g. `avx512_bf16`; empty where it does not."""
    facts = _cpu_facts()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


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
    """Return whole CPUs that the control group grants: `cpu.max` holds microseconds of CPU per period, or `max`."""
    granted, _, period = _read(_CPU_QUOTA).partition(" ")
    if not granted.isdigit() or not period.strip().isdigit():
        return otherwise
    return max(1, int(granted) // int(period))


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
