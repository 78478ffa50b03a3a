"""A disk that loses what was not synchronized.

What a program did to its files is recorded by strace, and the states are made in which a loss of power at any moment
could have left them.

    recording = record([sys.executable, "-m", "some.program"], folder)
    for event, disk in recording.states_at([100, 200]):
        disk.write(elsewhere / str(event), random.Random(1))

The rules are those that POSIX leaves to a file system, and stricter than any journal's:
- of a file, what was written since it was last synchronized is there or not, each write for itself, and perhaps in
  part; what is missing before the file's end reads as zeros
- of a folder, the names made, changed and removed since it was last synchronized are there in their order up to some
  moment, folder by folder; a rename happens in both of its folders or in none
- synchronizing a file does nothing for its name
Files that are mapped into memory are not followed: of those that the project writes it is SQLite's `-shm`, which SQLite
makes again.
"""

import re
import shutil
import subprocess
from collections.abc import Iterable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, field, replace
from pathlib import Path
from random import Random

CALLS = (
    "open,openat,creat,write,writev,pwrite64,pwritev,pwritev2,ftruncate,truncate,fallocate,rename,renameat,renameat2,link,"
    "linkat,symlink,symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir,fsync,fdatasync,syncfs,sync,copy_file_range,sendfile,"
    "lseek"
)
_LINE = re.compile(r"(\d+) +(?:(\w+)\((.*)|<\.\.\. (\w+) resumed>(.*))", re.DOTALL)
_RESULT = re.compile(r"(.*)\) += (-?\d+|\?)(<[^>]*>)?.*", re.DOTALL)
_UNFINISHED = " <unfinished ...>"
_HEX = re.compile(r"\\x([0-9a-f]{2})")
#: Of each loss: how likely a name, and a written piece of a file, is on the disk although nobody synchronized it.
_LIKELIHOODS = (0.0, 0.5, 0.9, 1.0)
_TORN = 0.1


@dataclass(slots=True, eq=False)
class _Node:
    """A file or a folder: what is on the disk of it, and what the program sees."""

    is_folder: bool
    names: dict[str, "_Node"] = field(default_factory=dict)
    durable_names: dict[str, "_Node"] = field(default_factory=dict)
    durable: bytes = b""
    pending: list["_Write"] = field(default_factory=list)
    position: int = 0
    size: int = 0


@dataclass(frozen=True, slots=True)
class _Write:
    """`data` None: the file is cut, or extended, to `offset`."""

    offset: int
    data: bytes | None

    def on(self, content: bytearray) -> None:
        end = self.offset if self.data is None else self.offset + len(self.data)
        if self.data is None:
            del content[end:]
        content.extend(bytes(max(0, end - len(content))))
        if self.data is not None:
            content[self.offset : end] = self.data


@dataclass(frozen=True, slots=True, eq=False)
class _Change:
    """Names of folders that change together; None removes one."""

    names: Sequence[tuple[_Node, str, _Node | None]]

    @property
    def folders(self) -> set[int]:
        return {id(folder) for folder, _, _ in self.names}

    def on_disk(self) -> None:
        for folder, name, node in self.names:
            _set(folder.durable_names, name, node)

    def seen(self) -> None:
        for folder, name, node in self.names:
            _set(folder.names, name, node)


@dataclass(frozen=True, slots=True)
class Event:
    """A call that ended well. `begun` is how many had ended when it began."""

    name: str
    arguments: Sequence[str]
    result: int
    begun: int


@dataclass(slots=True)
class Recording:
    """What a program did below a folder, in order, and what it said meanwhile on its standard output."""

    folder: Path
    events: list[Event]

    def said(self, before: int) -> list[str]:
        """The lines that the program had written to its standard output before an event."""
        written = (_bytes(each.arguments[1]) for each in self.events[:before] if _is_output(each))
        return b"".join(written).decode().splitlines()

    def saying(self, prefix: str) -> list[int]:
        """The events with which the program said a line that begins so."""
        return [
            number
            for number, each in enumerate(self.events)
            if _is_output(each) and _bytes(each.arguments[1]).decode().startswith(prefix)
        ]

    def part(self, folder: Path, begin: int, end: int) -> "Recording":
        """What the program did between two events, below a folder that it used only then."""
        return Recording(folder, [replace(each, begun=max(0, each.begun - begin)) for each in self.events[begin:end]])

    def states_at(self, events: Iterable[int]) -> Iterator[tuple[int, "Disk"]]:
        """The disk just before each of these events, the earliest first: what happened is gone through once."""
        disk, done = Disk(self.folder), 0
        for event in sorted(events):
            for number in range(done, event):
                disk.apply(number, self.events[number])
            done = event
            yield event, deepcopy(disk)


class Disk:
    """What is on the disk, and what only the program sees."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._root = _Node(is_folder=True)
        self._changes: list[tuple[int, _Change]] = []

    def write(self, target: Path, random: Random, *, everything: bool = False) -> None:
        """Makes one of the states that a loss of power could leave now; or the one that the program sees."""
        names, pieces = (1.0, 1.0) if everything else (random.choice(_LIKELIHOODS), random.choice(_LIKELIHOODS))
        closed: set[int] = set()
        for _, change in self._changes:
            if closed & change.folders or random.random() >= names:
                closed |= change.folders
            else:
                change.on_disk()
        _write(self._root, target, random, pieces, torn=not everything)

    # ---- what the program did

    def apply(self, number: int, event: Event) -> None:
        handler = getattr(self, f"_on_{event.name}", None)
        if handler is not None:
            handler(number, event)

    def _on_openat(self, number: int, event: Event) -> None:
        path = _path(event.arguments[0], event.arguments[1])
        flags = event.arguments[2]
        found = self._place(path)
        if found is None:
            return
        folder, name = found
        node = folder.names.get(name)
        if node is None and "O_CREAT" in flags:
            node = _Node(is_folder=False)
            self._change(number, (folder, name, node))
        if node is None or node.is_folder:
            return
        node.position = 0
        if "O_TRUNC" in flags and node.size:
            self._cut(node, 0)
        if "O_APPEND" in flags:
            node.position = node.size

    def _on_open(self, number: int, event: Event) -> None:
        self._on_openat(number, Event("openat", ["", *event.arguments], event.result, event.begun))

    def _on_write(self, _: int, event: Event) -> None:
        node = self._open(event.arguments[0])
        if node is not None:
            self._put(node, node.position, _bytes(event.arguments[1])[: event.result])
            node.position += event.result

    def _on_pwrite64(self, _: int, event: Event) -> None:
        node = self._open(event.arguments[0])
        if node is not None:
            self._put(node, int(event.arguments[3]), _bytes(event.arguments[1])[: event.result])

    def _on_lseek(self, _: int, event: Event) -> None:
        node = self._open(event.arguments[0])
        if node is not None:
            node.position = event.result

    def _on_ftruncate(self, _: int, event: Event) -> None:
        node = self._open(event.arguments[0])
        if node is not None:
            self._cut(node, int(event.arguments[1]))

    def _on_mkdir(self, number: int, event: Event) -> None:
        found = self._place(_path("", event.arguments[0]))
        if found is not None:
            self._change(number, (*found, _Node(is_folder=True)))

    def _on_rename(self, number: int, event: Event) -> None:
        self._move(number, _path("", event.arguments[0]), _path("", event.arguments[1]))

    def _on_renameat(self, number: int, event: Event) -> None:
        one, two, three, four = event.arguments[:4]
        self._move(number, _path(one, two), _path(three, four))

    _on_renameat2 = _on_renameat

    def _on_linkat(self, number: int, event: Event) -> None:
        source, target = (self._place(_path(*event.arguments[n : n + 2])) for n in (0, 2))
        if target is not None:
            assert source is not None, "a link from elsewhere is not followed"
            self._change(number, (*target, source[0].names[source[1]]))

    def _on_unlink(self, number: int, event: Event) -> None:
        self._remove(number, _path("", event.arguments[0]))

    _on_rmdir = _on_unlink

    def _on_unlinkat(self, number: int, event: Event) -> None:
        self._remove(number, _path(event.arguments[0], event.arguments[1]))

    def _on_symlink(self, number: int, event: Event) -> None:
        found = self._place(_path("", event.arguments[1]))
        if found is not None:
            self._change(number, (*found, _Node(is_folder=False)))

    def _on_fsync(self, _: int, event: Event) -> None:
        node = self._open(event.arguments[0])
        if node is None:
            return
        if node.is_folder:
            self._sync_names({id(node)}, event.begun)
        else:
            _sync(node)

    _on_fdatasync = _on_fsync

    def _on_syncfs(self, _: int, event: Event) -> None:
        if self._node(_descriptor(event.arguments[0])) is None:
            return
        self._changes, changes = [], self._changes
        for _, change in changes:
            change.on_disk()
        for node in _all(self._root):
            _sync(node)

    def _on_unknown(self, _: int, event: Event) -> None:
        """Fails where the program did to its files what is not modelled here."""
        for argument in event.arguments:
            if self._place(Path(_text(argument))) is not None or self._open(argument) is not None:
                raise NotImplementedError(f"{event.name} is not modelled: {[_text(each) for each in event.arguments]}")

    _on_creat = _on_writev = _on_pwritev = _on_pwritev2 = _on_truncate = _on_fallocate = _on_unknown
    _on_copy_file_range = _on_sendfile = _on_link = _on_symlinkat = _on_mkdirat = _on_sync = _on_unknown

    # ---- how

    def _put(self, node: _Node, offset: int, data: bytes) -> None:
        node.pending.append(_Write(offset, data))
        node.size = max(node.size, offset + len(data))

    def _cut(self, node: _Node, size: int) -> None:
        node.pending.append(_Write(size, None))
        node.size = size

    def _move(self, number: int, source: Path, target: Path) -> None:
        one, two = self._place(source), self._place(target)
        if one is None and two is None:
            return
        assert one is not None, f"{source} came from elsewhere"
        assert two is not None, f"{target} lies elsewhere"
        self._change(number, (*one, None), (*two, one[0].names[one[1]]))

    def _remove(self, number: int, path: Path) -> None:
        found = self._place(path)
        if found is not None:
            self._change(number, (*found, None))

    def _change(self, number: int, *names: tuple[_Node, str, _Node | None]) -> None:
        change = _Change(names)
        change.seen()
        self._changes.append((number, change))

    def _sync_names(self, folders: set[int], begun: int) -> None:
        """With what a rename changed elsewhere, and what came before it there."""
        needed: list[_Change] = []
        left: list[tuple[int, _Change]] = []
        for number, change in reversed(self._changes):
            if number < begun and folders & change.folders:
                folders = folders | change.folders
                needed.append(change)
            else:
                left.append((number, change))
        self._changes = left[::-1]
        for change in reversed(needed):
            change.on_disk()

    def _open(self, descriptor: str) -> _Node | None:
        return self._node(_descriptor(descriptor))

    def _node(self, path: Path) -> _Node | None:
        found = self._place(path)
        if path == self._folder:
            return self._root
        return None if found is None else found[0].names.get(found[1])

    def _place(self, path: Path) -> tuple[_Node, str] | None:
        """The folder of a path below the recorded one, and its name there."""
        if not path.is_relative_to(self._folder) or path == self._folder:
            return None
        folder = self._root
        *above, name = path.relative_to(self._folder).parts
        for part in above:
            if part not in folder.names:
                return None
            folder = folder.names[part]
        return folder, name


def record(command: Sequence[str], folder: Path, environment: Mapping[str, str]) -> Recording:
    """Runs a program to its end. `folder` is empty, or not there yet."""
    folder.mkdir(parents=True, exist_ok=True)
    trace = folder.with_name(folder.name + ".strace")
    strace = ["strace", "-f", "-y", "-xx", "-s", str(2**26), "--seccomp-bpf", "-e", f"trace={CALLS}", "-o", str(trace)]
    done = subprocess.run(
        [*strace, *command], env=environment, capture_output=True, text=True, timeout=800, check=False
    )
    assert done.returncode == 0, done.stderr[-4000:]
    recording = Recording(folder, list(_events(trace)))
    trace.unlink()
    return recording


def _events(trace: Path) -> Iterator[Event]:
    begun: dict[str, tuple[str, str, int]] = {}
    ended = 0
    with trace.open(encoding="ascii") as lines:
        for line in lines:
            found = _LINE.match(line.rstrip("\n"))
            if found is None:
                continue
            thread, name, rest, resumed, end = found.groups()
            if name is not None and rest.endswith(_UNFINISHED):
                begun[thread] = name, rest.removesuffix(_UNFINISHED), ended
                continue
            start, since = (rest, ended)
            if resumed is not None:
                name, start, since = begun.pop(thread)
                start += end
            result = _RESULT.match(start)
            if result is None or result[2] in ("?", "-1"):
                continue
            yield Event(name, result[1].split(", "), int(result[2]), since)
            ended += 1


def _bytes(argument: str) -> bytes:
    """Of `"\\x61\\x62"`."""
    return bytes.fromhex(argument.strip('"').replace("\\x", ""))


def _text(argument: str) -> str:
    return _HEX.sub(lambda found: chr(int(found[1], 16)), argument).strip('"')


def _descriptor(argument: str) -> Path:
    """Of `3<\\x2f\\x61>`."""
    return Path(_text(argument.partition("<")[2].rstrip(">")))


def _path(folder: str, argument: str) -> Path:
    name = _bytes(argument).decode()
    return Path(name) if name.startswith("/") or not folder else _descriptor(folder) / name


def _is_output(event: Event) -> bool:
    return event.name == "write" and event.arguments[0].partition("<")[0] == "1"


def _set(names: dict[str, _Node], name: str, node: _Node | None) -> None:
    names.pop(name, None)
    if node is not None:
        names[name] = node


def _sync(node: _Node) -> None:
    content = bytearray(node.durable)
    for write in node.pending:
        write.on(content)
    node.durable, node.pending = bytes(content), []


def _all(node: _Node) -> Iterator[_Node]:
    yield node
    for each in {id(each): each for each in (*node.names.values(), *node.durable_names.values())}.values():
        yield from _all(each)


def _write(node: _Node, target: Path, random: Random, kept: float, *, torn: bool) -> None:
    if node.is_folder:
        target.mkdir()
        for name, each in node.durable_names.items():
            _write(each, target / name, random, kept, torn=torn)
        return
    content = bytearray(node.durable)
    for write in node.pending:
        if random.random() < kept:
            part = write
            if torn and write.data is not None and random.random() < _TORN:
                part = _Write(write.offset, write.data[: random.randrange(len(write.data) + 1)])
            part.on(content)
    target.write_bytes(content)


def is_missing() -> str | None:
    """Why nothing can be recorded here; None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed (`apt-get install strace`)"
    tried = subprocess.run(["strace", "-f", "true"], capture_output=True, text=True, check=False)
    return None if tried.returncode == 0 else f"strace may not trace here: {tried.stderr.strip()[:200]}"
