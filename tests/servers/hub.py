"""A model hub of the tests' own: an HTTP server that speaks as much of the Hugging Face hub's interface as is used.

Point `HF_ENDPOINT` at `Hub.url`, and `HF_HUB_CACHE` at a folder of the test's own.
"""

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any
from urllib.parse import unquote, urlsplit


@dataclass
class Hub:
    """What the hub has, and what it was asked for.

    repositories  name -> folder
    failures      so many requests are answered with 503 before it works
    away          names of repositories of which it has nothing but 503
    """

    url: str
    repositories: dict[str, Path] = field(default_factory=dict)
    failures: int = 0
    away: set[str] = field(default_factory=set)
    asked: list[str] = field(default_factory=list)

    def environment(self, cache: Path) -> dict[str, str]:
        """Variables with which a process uses this hub, and nothing of what this machine has fetched."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_CACHE": str(cache / "hub"),
            "HF_MODULES_CACHE": str(cache / "modules"),
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1",
            "HF_HUB_DISABLE_TELEMETRY": "1",
        }


@contextmanager
def serving_hub() -> Iterator[Hub]:
    """A hub that runs until the end of the block."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append(path)
            if hub.failures > 0:
                hub.failures -= 1
                self._answer(503, b"away")
            elif any(f"/{name}/" in f"{path}/" for name in hub.away):
                self._answer(503, b"away")
            elif path.startswith("/api/models/"):
                self._api(path.removeprefix("/api/models/"))
            else:
                self._file(path.removeprefix("/"))

        do_HEAD = do_GET  # noqa: N815

        def _api(self, path: str) -> None:
            """`NAME/revision/REVISION`: what the repository is; `NAME/tree/REVISION`: its files."""
            name, _, what = path.partition("/revision/") if "/revision/" in path else path.partition("/tree/")
            folder = hub.repositories.get(name)
            if folder is None or not what:
                self._missing("RepoNotFound")
                return
            files = sorted(each for each in folder.rglob("*") if each.is_file())
            if "/tree/" in path:
                entries = [
                    {
                        "type": "file",
                        "path": each.relative_to(folder).as_posix(),
                        "size": each.stat().st_size,
                        "oid": _digest(each.read_bytes()),
                    }
                    for each in files
                ]
                self._json(entries)
            else:
                names = [{"rfilename": each.relative_to(folder).as_posix()} for each in files]
                self._json({"id": name, "modelId": name, "sha": _commit(folder), "siblings": names, "tags": []})

        def _file(self, path: str) -> None:
            name, _, rest = path.partition("/resolve/")
            folder = hub.repositories.get(name)
            if folder is None:
                self._missing("RepoNotFound")
                return
            file = folder / rest.partition("/")[2]
            if not file.is_file():
                self._missing("EntryNotFound", **{"X-Repo-Commit": _commit(folder)})
                return
            content = file.read_bytes()
            self._answer(200, content, **{"X-Repo-Commit": _commit(folder), "ETag": f'"{_digest(content)}"'})

        def _missing(self, code: str, **headers: str) -> None:
            self._answer(404, b"", **{"X-Error-Code": code, **headers})

        def _json(self, value: Any) -> None:
            self._answer(200, json.dumps(value).encode(), **{"Content-Type": "application/json"})

        def _answer(self, status: int, body: bytes, **headers: str) -> None:
            self.send_response(status)
            for header, value in {"Content-Length": str(len(body)), **headers}.items():
                self.send_header(header, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            """Nothing to stderr."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def handle_error(self, *_: object) -> None:
            """Nothing to stderr."""

    with Server(("127.0.0.1", 0), Handler) as server:
        hub = Hub(f"http://127.0.0.1:{server.server_address[1]}")
        thread = Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        try:
            yield hub
        finally:
            server.shutdown()
            thread.join()


def _digest(content: bytes) -> str:
    return hashlib.sha1(content, usedforsecurity=False).hexdigest()


def _commit(folder: Path) -> str:
    """A revision that is another one for other files."""
    files = sorted((str(each.relative_to(folder)), each.stat().st_size) for each in folder.rglob("*") if each.is_file())
    return _digest(repr(files).encode())
