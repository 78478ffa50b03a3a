"""What a file does that has taken over the process which reads it. Run in parser processes by the tests."""

import ctypes
import errno
import fcntl
import json
import os
import pickle
import platform
import resource
import signal
import socket
import struct
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from vectorize_pipelines.documents import ParseOutcome
    from vectorize_pipelines.documents.worker import Task
    from vectorize_pipelines.settings import DocumentSettings

libc = ctypes.CDLL(None, use_errno=True)
X86 = platform.machine() == "x86_64"
SOCKET, IO_URING_SETUP, MEMFD_CREATE = (41, 425, 319) if X86 else (198, 425, 279)
MSGRCV, SEMCTL = (70, 66) if X86 else (188, 191)
F_SETSIG, F_SETOWN_EX = 10, 15


def act(task: "Task", settings: "DocumentSettings") -> "ParseOutcome":
    """The handler of parser processes: the URI says what is tried, the content is the argument; gives what came of it.

    "denied" is the answer where the system refuses.
    """
    # Only here: processes without a parser try things, too.
    from vectorize_pipelines.core.items import content_hash
    from vectorize_pipelines.documents import ParsedDocument, ParseOutcome

    del settings
    found = tried(task.uri, bytes(task.content).decode())
    return ParseOutcome(content_hash(""), ParsedDocument(found, {}))


def tried(name: str, argument: str) -> str:
    """What came of trying something in this process: "denied" where the system refuses."""
    try:
        return str(TRIED[name](argument))
    except OSError as error:
        return "denied" if error.errno in (errno.EPERM, errno.EACCES) else f"{type(error).__name__}: {error}"


def connection() -> socket.socket:
    """The process's end of the pair that it is asked and answers through."""
    return socket.socket(fileno=os.dup(int(sys.argv[1])))


def environment(_: str) -> str:
    return json.dumps(dict(os.environ))


def connect(address: str) -> str:
    host, _, port = address.rpartition(":")
    return str(socket.create_connection((host, int(port)), timeout=5).getpeername())


def connect_unix(path: str) -> str:
    with socket.socket(socket.AF_UNIX) as client:
        client.connect(path)
    return "connected"


def datagram(address: str) -> str:
    host, _, port = address.rpartition(":")
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
        client.sendto(b"stolen", (host, int(port)))
    return "sent"


def pair_of_datagrams(path: str) -> str:
    """A pair of sockets is none that `socket` makes, and one of datagrams is bound to nobody."""
    first, second = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with first, second:
        first.sendto(b"stolen", path)
    return "sent"


def own_channel_elsewhere(path: str) -> str:
    """A message to another address, through the pair that is there. The kernel itself refuses it for streams."""
    with connection() as channel:
        channel.sendto(b"stolen", path)
    return "sent"


def pass_descriptor(_: str) -> str:
    with connection() as channel:
        socket.send_fds(channel, [b"\0"], [0])
    return "sent"


def own_signals(pid: str) -> str:
    """Has the kernel send SIGKILL to another process as soon as a pipe can be read."""
    reader, writer = os.pipe()
    fcntl.fcntl(reader, fcntl.F_SETOWN, int(pid))
    fcntl.fcntl(reader, F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETFL, os.O_ASYNC)
    os.write(writer, b"x")
    return "sent"


def command_of_fcntl(numbers: str) -> str:
    command, argument = map(int, numbers.split())
    reader, _ = os.pipe()
    return str(fcntl.fcntl(reader, command, argument))


def command_of_fcntl_owner(pid: str) -> str:
    reader, _ = os.pipe()
    return str(fcntl.fcntl(reader, F_SETOWN_EX, struct.pack("ii", 1, int(pid))))


def command_of_ioctl(numbers: str) -> str:
    """On the channel: a socket."""
    command, argument = map(int, numbers.split())
    with connection() as channel:
        return str(fcntl.ioctl(channel, command, struct.pack("i", argument)))


def honest_commands(_: str) -> str:
    """What libraries do with descriptors."""
    reader, writer = os.pipe()
    with connection() as channel:
        channel.setblocking(True)
        channel.settimeout(5)
        channel.send(b"")
    os.set_inheritable(reader, True)
    os.set_blocking(reader, False)
    copy = os.dup(reader)
    with Path(os.devnull).open("rb") as file:
        fcntl.flock(file, fcntl.LOCK_SH)
        file.isatty()
    for each in (copy, reader, writer):
        os.close(each)
    return "done"


def system_call(numbers: str) -> str:
    """A call of the kernel without any library between."""
    result = libc.syscall(*map(ctypes.c_long, map(int, numbers.split())))
    if result < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return str(result)


def read(path: str) -> str:
    return Path(path).read_bytes().decode("utf-8", "replace")


def write(path: str) -> str:
    return str(Path(path).write_text("written by a document"))


def append(path: str) -> str:
    with Path(path).open("a") as file:
        return str(file.write("written by a document"))


def remove(path: str) -> str:
    Path(path).unlink()
    return "removed"


def change_mode(path: str) -> str:
    Path(path).chmod(0o777)
    return "changed"


def signal_parent(_: str) -> str:
    os.kill(os.getppid(), signal.SIGTERM)
    return "sent"


def signal_all(_: str) -> str:
    os.kill(0, signal.SIGTERM)
    return "sent"


def starve_parent(_: str) -> str:
    resource.prlimit(os.getppid(), resource.RLIMIT_NOFILE, (0, 0))
    return "starved"


def raise_own_limit(_: str) -> str:
    try:
        resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    except ValueError:
        return "denied"  # what Python makes of EPERM
    return "raised"


def read_parent(_: str) -> str:
    return read(f"/proc/{os.getppid()}/environ")


def read_parent_memory(_: str) -> str:
    buffer = ctypes.create_string_buffer(16)
    local = struct.pack("PN", ctypes.addressof(buffer), 16)
    remote = struct.pack("PN", 0x10000, 16)
    if libc.process_vm_readv(os.getppid(), local, 1, remote, 1, 0) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return "read"


def trace_parent(_: str) -> str:
    if libc.ptrace(16, os.getppid(), None, None) < 0:
        raise OSError(ctypes.get_errno(), "refused")
    return "attached"


def run_program(_: str) -> str:
    return str(os.execv("/bin/true", ["true"]))


def fork(_: str) -> str:
    return str(os.fork())


def start_program(_: str) -> str:
    return str(os.posix_spawn("/bin/true", ["true"], {}))


def list_folder(path: str) -> str:
    return str(os.listdir(path))  # noqa: PTH208


TRIED: Mapping[str, Callable[[str], str]] = {
    function.__name__: function
    for function in (
        environment,
        connect,
        connect_unix,
        datagram,
        pair_of_datagrams,
        own_channel_elsewhere,
        pass_descriptor,
        own_signals,
        command_of_fcntl,
        command_of_fcntl_owner,
        command_of_ioctl,
        honest_commands,
        system_call,
        read,
        write,
        append,
        remove,
        change_mode,
        signal_parent,
        signal_all,
        starve_parent,
        raise_own_limit,
        read_parent,
        read_parent_memory,
        trace_parent,
        run_program,
        start_program,
        fork,
        list_folder,
    )
}


class RunsCode:
    """Whatever unpickles it makes a file."""

    def __init__(self, path: str):
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (self.path,)


def pickled(path: str) -> bytes:
    """A pickle that makes the folder `path` when it is loaded."""
    return pickle.dumps(RunsCode(path))
