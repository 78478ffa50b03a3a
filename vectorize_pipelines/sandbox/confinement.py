"""The confinement of a process before it reads the first hostile byte, and what its parent leaves it at first."""

import ctypes
import os
import re
import signal
import struct
import sys
import sysconfig
from collections.abc import Iterable
from functools import cache
from pathlib import Path

from vectorize_pipelines.core.installation import checkout, package_folder
from vectorize_pipelines.sandbox.landlock import see_only
from vectorize_pipelines.sandbox.seccomp import refuse_system_calls

#: Each process does one thing at a time: more threads inside would only take the processors from its neighbours, and
#: their stacks and arenas count against the memory limit.
SINGLE_THREADED = {
    "OMP_NUM_THREADS": "1",
    "OPENBLAS_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "ARROW_IO_THREADS": "1",
    "MALLOC_ARENA_MAX": "2",
}
_LIBRARY_VARIABLES = ("LD_LIBRARY_PATH", "DYLD_LIBRARY_PATH", "DYLD_FALLBACK_LIBRARY_PATH")
#: What a Python finds its libraries and its language by. Nothing else of the parent's environment is handed on.
_HANDED_ON = (
    "PATH",
    "LANG",
    "LANGUAGE",
    "TMPDIR",
    "TZ",
    "PYTHONHOME",
    "PYTHONUTF8",
    *_LIBRARY_VARIABLES,
)

#: Not `/usr` as a whole: projects are installed in `/usr/src` and `/usr/local`, with their data.
_SYSTEM = (
    "/usr/lib",
    "/usr/lib32",
    "/usr/lib64",
    "/usr/share",
    "/usr/local/lib",
    "/usr/local/lib64",
    "/usr/local/share/fonts",
    "/lib",
    "/lib32",
    "/lib64",
    "/nix/store",
    "/etc/ld.so.cache",
    "/etc/localtime",
    "/dev/null",
    "/dev/urandom",
    "/sys/devices/system/cpu",
    "/proc/cpuinfo",
    "/proc/meminfo",
)
_MODULE_PATHS = ("stdlib", "platstdlib", "purelib", "platlib")
_INSTALLATIONS = ("site-packages", "dist-packages")
_OPEN_FILES = 256
_PR_SET_PDEATHSIG = 1
_CAPABILITY_VERSION = 0x20080522


def clean_environment() -> dict[str, str]:
    """Return the environment of a confined process: no setting, no credential, no proxy of the parent's."""
    own = {name: value for name, value in os.environ.items() if name in _HANDED_ON or name.startswith("LC_")}
    libraries = {name: ":".join(_library_folders(own[name])) for name in _LIBRARY_VARIABLES if name in own}
    return own | libraries | SINGLE_THREADED


def module_folders() -> list[str]:
    """Return where this process finds modules, absolute."""
    return [os.path.abspath(entry) for entry in sys.path]  # noqa: PTH100 (links stay as they are)


@cache
def readable_paths() -> tuple[str, ...]:
    """Return what a confined process may read: Python, the packages installed for it, this one, the system's libraries.

    Of the folders in which modules are found only those into which packages were installed, and of Python's own
    prefixes only their libraries: a project's own folder, which may be such a prefix, also holds its data and its
    `.env`. Where it lies below one of these paths all the same, `exposed_folders` says so.
    """
    installed = {entry for entry in module_folders() if _is_installation(Path(entry))}
    libraries = {
        entry for name in _LIBRARY_VARIABLES for entry in _library_folders(os.environ.get(name, "")) if "$" not in entry
    }
    package = str(package_folder())
    found = {*_python_folders(), *installed, *libraries, package}
    return (*_SYSTEM, *sorted(path for path in found if os.path.realpath(path) != "/"))


def _python_folders() -> set[str]:
    """Return the standard library, installed packages, and the shared libraries that a Python brings with it."""
    modules = {path for name, path in sysconfig.get_paths().items() if name in _MODULE_PATHS}
    # Conda and others keep there what `_ssl` or `_ctypes` load. A virtual environment has no shared libraries there.
    folders = {"lib", sys.platlibdir, "share/zoneinfo"}
    return modules | {str(Path(base, each)) for base in (sys.base_prefix, sys.base_exec_prefix) for each in folders}


def _library_folders(value: str) -> list[str]:
    """Return the folders of such a variable, absolute: relative ones mean something else in another process's folder.

    Those with `$ORIGIN` and the like stay as they are. An empty one stands for the folder that a process is in.
    """
    entries = [entry for entry in re.split("[:;]", value) if entry]
    return [entry if "$" in entry else os.path.abspath(entry) for entry in entries]  # noqa: PTH100 (links stay)


def exposed_folders(readable: Iterable[str]) -> dict[str, str]:
    """Return, under `project`, which of the project's folder, VECTORIZE_HOME and `.env` lie below a readable path."""
    # Confined processes import this module too: they need no settings, and pydantic takes memory and time to start.
    from vectorize_pipelines.settings import DOTENV_FILE, load_settings

    named = {"VECTORIZE_HOME": load_settings().home}
    project = checkout()
    if project is not None:
        named["the project's folder"] = project
    if Path(DOTENV_FILE).exists():
        named["the file"] = Path(DOTENV_FILE).absolute()
    found = []
    for name, folder in named.items():
        place = Path(os.path.realpath(folder))
        above = [path for path in readable if place.is_relative_to(os.path.realpath(path))]
        if above:
            found.append(f"{name} {folder} lies below {above[0]}; move it elsewhere")
    return {"project": "; ".join(found)} if found else {}


def _is_installation(folder: Path) -> bool:
    if folder.name in _INSTALLATIONS:
        return True
    try:
        return any(entry.name.endswith(".dist-info") for entry in os.scandir(folder))
    except OSError:
        return False


def end_with_parent(parent: int) -> None:
    """Have the kernel end this process when its parent ends, however busy both are. Only Linux does."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != parent:
        os._exit(1)


def confine(memory_bytes: int, readable: Iterable[str]) -> dict[str, str]:
    """Take from this process, for good, what it does not need for computing.

    Call it before a second thread is started. Returns what could not be taken, with the reason: `network` stands for
    sockets, other processes and writing files, `files` for reading what is not in `readable`. To these the parent adds
    what `exposed_folders` finds.
    """
    sys.dont_write_bytecode = True
    lacking: dict[str, str] = {}
    if reason := see_only(readable):
        lacking["files"] = reason
    _limit_resources(memory_bytes)
    _drop_capabilities()
    if reason := refuse_system_calls():
        lacking["network"] = reason
    return lacking


def _limit_resources(memory_bytes: int) -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))  # a core file holds the document
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    most = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    if sys.platform == "linux":  # others do not bound the address space
        resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))


def _drop_capabilities() -> None:
    """Leave of root only its files. A process without capabilities has nothing to drop."""
    if sys.platform == "linux":
        libc = ctypes.CDLL(None)
        libc.capset(struct.pack("Ii", _CAPABILITY_VERSION, 0), bytes(24))
