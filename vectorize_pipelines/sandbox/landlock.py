"""The file system that a confined process sees: a Landlock ruleset. Linux 5.13 and later; no privilege needed."""

import ctypes
import os
import stat
import struct
import sys
from collections.abc import Iterable

_CREATE, _ADD_RULE, _RESTRICT = 444, 445, 446  # the same on every architecture
_ASK_VERSION = 1
_PATH_BENEATH = 1
_READ_FILE, _READ_FOLDER = 1 << 2, 1 << 3
#: By version of the interface: how many rights to files it knows.
_FILE_RIGHTS = {1: 13, 2: 14, 3: 15, 4: 15}
_FILE_RIGHTS_NOW = 16
#: From version 4 on TCP is bound and connected by right, from 6 on abstract sockets and signals stay within.
_TCP, _SCOPES = 0b11, 0b11
_PR_SET_NO_NEW_PRIVS = 38


def see_only(readable: Iterable[str]) -> str | None:
    """Leave this thread and those that it starts nothing but to read these folders and files, for good.

    What is open stays usable. Paths that do not exist are passed over. Returns why it could not, None where it could.
    """
    if sys.platform != "linux":
        return "only Linux has Landlock"
    libc = ctypes.CDLL(None, use_errno=True)
    version = libc.syscall(_CREATE, None, ctypes.c_size_t(0), ctypes.c_uint32(_ASK_VERSION))
    if version < 1:
        return f"no Landlock in this kernel, or not allowed ({os.strerror(ctypes.get_errno())})"
    files = (1 << _FILE_RIGHTS.get(version, _FILE_RIGHTS_NOW)) - 1
    attributes = struct.pack("QQQ", files, _TCP, _SCOPES)[: 8 if version < 4 else 16 if version < 6 else 24]
    ruleset = libc.syscall(_CREATE, attributes, ctypes.c_size_t(len(attributes)), ctypes.c_uint32(0))
    if ruleset < 0:
        return f"Landlock: {os.strerror(ctypes.get_errno())}"
    try:
        for path in readable:
            if not _allow(libc, ruleset, path):
                return f"Landlock: {path}: {os.strerror(ctypes.get_errno())}"
        unprivileged = libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        if unprivileged != 0 or libc.syscall(_RESTRICT, ruleset, ctypes.c_uint32(0)) != 0:
            return f"Landlock: {os.strerror(ctypes.get_errno())}"
    finally:
        os.close(ruleset)
    return None


def _allow(libc: ctypes.CDLL, ruleset: int, path: str) -> bool:
    try:
        descriptor = os.open(path, os.O_PATH | os.O_CLOEXEC)
    except OSError:
        return True
    try:
        folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        rule = struct.pack("=Qi", _READ_FILE | _READ_FOLDER if folder else _READ_FILE, descriptor)
        done: int = libc.syscall(_ADD_RULE, ruleset, _PATH_BENEATH, rule, ctypes.c_uint32(0))
        return done == 0
    finally:
        os.close(descriptor)
