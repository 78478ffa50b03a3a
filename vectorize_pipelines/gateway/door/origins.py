"""An ASGI layer that keeps away pages of other origins, and paths with a trick in them.

A browser sends requests to any address that a page names, also to services of its own machine. What tells them apart:

- `Host` names the address that the page asked for. A name that somebody has pointed here (DNS rebinding) is not ours;
  nobody can point an address in numbers anywhere.
- `Origin` and `Sec-Fetch-Site` say which page asks. No page can set or remove them; programs such as curl send neither.
- A page of another origin cannot send `application/json` without asking first (a preflight), which only the origins
  in `gateway.cors_origins` are allowed.
- A link leads to a page and nowhere else: another address could answer with a page that somebody else has written,
  whose scripts would be at this origin.

`gateway.app` puts it in front of everything; `door.browser_guard` has the same rules for Dagster's web server alone.
"""

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from ipaddress import ip_address

from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from vectorize_pipelines.gateway.door.listening import is_loopback
from vectorize_pipelines.gateway.paths import PATH_PREFIX
from vectorize_pipelines.gateway.problems import Problem, refuse
from vectorize_pipelines.settings import Settings

#: Headers that a rule below reads. Where one is repeated, two readers could each take another one.
_READ_ONCE = frozenset((b"host", b"origin", b"content-type", b"sec-fetch-site", b"sec-fetch-mode", b"sec-fetch-dest"))
#: Sent with every answer: no frame of another page has the user click here, no other page reads what was answered.
PROTECTION = {
    "X-Frame-Options": "SAMEORIGIN",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
FRAME_POLICY = "frame-ancestors 'self'"
_LOOPBACK = ("localhost", "127.0.0.1", "[::1]")
#: First parts of the addresses at which Dagster's UI has pages, beside `/`.
_UI_PAGES = frozenset(
    (
        "asset-groups", "assets", "automation", "catalog", "concurrency", "config", "deployment", "graphs", "guess",
        "health", "instance", "integrations", "jobs", "locations", "overview", "playground", "runs", "schedules",
        "search", "selection", "sensors", "settings", "snapshots", "timeline", "workspace",
    )
)  # fmt: skip
#: Shows a file of this machine, which the query names, as a page of this server, with the scripts in it.
_NOTEBOOK = re.compile(r"/*(dagit/+)?notebook[/\s]*", re.IGNORECASE)

#: The pages of the gateway itself.
_PAGES = frozenset(("/", "/cameras", "/docs", "/signin"))
#: Take a form, and are guarded by the origin of its page.
FORMS = frozenset(("/signin", "/signout"))
_METHODS = ("GET", "HEAD", "POST", "DELETE", "OPTIONS")
_PROTECTION = {
    **PROTECTION,
    "Referrer-Policy": "same-origin",
    "Content-Security-Policy": (
        "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
        + FRAME_POLICY
    ),
    # What a caller may see is not for the next one at the same browser. Files below /static say otherwise themselves.
    "Cache-Control": "no-store",
}
_ENCODED = {name: (name.lower().encode(), value.encode()) for name, value in _PROTECTION.items()}
_DAGSTER_POLICY = (b"content-security-policy", FRAME_POLICY.encode())
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_ENCODED_SLASH = re.compile("%2f", re.IGNORECASE)
_DOTS = re.compile(r"/\.{1,2}(/|$)")
#: Behind these stands the id of a task.
_TASKS = ("/tasks/", "/api/v1/diagnosis/tasks/")
#: Behind these stands a name, which may have a slash: `topic/0/17`, `sentence-transformers/all-MiniLM-L6-v2`.
_NAMES = (*_TASKS, "/v1/models/")


@dataclass(frozen=True, slots=True)
class ServerAddress:
    """The address of a server. `port` is the one that it was given, where the settings say 0."""

    host: str
    port: int
    tls: bool = False

    @property
    def is_loopback(self) -> bool:
        """True if only this machine reaches it."""
        return is_loopback(self.host)

    @property
    def is_everywhere(self) -> bool:
        """True if it listens at all addresses of the machine."""
        try:
            return ip_address(self.host).is_unspecified
        except ValueError:
            return False

    @property
    def hosts(self) -> set[str]:
        """The `Host` headers under which it is reached, as far as its address says."""
        name = f"[{self.host}]" if ":" in self.host else self.host
        names = {*_LOOPBACK, *([] if self.is_everywhere else [name.lower()])}
        hosts = {f"{name}:{self.port}" for name in names}
        return hosts | names if self.port == (443 if self.tls else 80) else hosts


@dataclass(frozen=True, slots=True)
class Refusal:
    """The answer to a request that is not let through."""

    status: int
    reason: str


def loopback_hosts(port: int) -> set[str]:
    """Return the `Host` headers under which a browser on this machine reaches a server at `port`."""
    return ServerAddress("localhost", port).hosts


def repeated_header(headers: Headers) -> Refusal | None:
    """Return the refusal of a request with a header twice that a rule reads."""
    seen = set()
    for name, _ in headers.raw:
        if name in _READ_ONCE:
            if name in seen:
                return Refusal(400, f"the header {name.decode()} is there more than once")
            seen.add(name)
    return None


def is_own_origin(origin: str, host: str) -> bool:
    """Return whether an `Origin` is that of a page of this server, under the name by which it was asked.

    The scheme says nothing: a proxy may have TLS where this server has none.
    """
    scheme, _, authority = origin.lower().partition("://")
    return scheme in ("http", "https") and authority == host.lower()


def foreign_page(scope: Scope, headers: Headers, host: str, *, linked_to: bool) -> Refusal | None:
    """Return the refusal of what a page of another origin has sent.

    linked_to  there is a page at the path, to which others may link
    """
    origin = headers.get("origin")
    if origin is not None and not is_own_origin(origin, host):
        return Refusal(403, f"a page of another origin ({origin!r}) may not send requests")
    site = headers.get("sec-fetch-site")
    if site in (None, "same-origin", "none"):
        return None
    link = headers.get("sec-fetch-mode") == "navigate" and headers.get("sec-fetch-dest") == "document"
    if linked_to and link and scope["type"] == "http" and scope["method"] == "GET":
        return None
    return Refusal(403, f"a page of another origin (Sec-Fetch-Site {site!r}) may only link to pages")


def is_ui_page(path: str) -> bool:
    """Return whether a path of Dagster's web server is that of a page of its UI."""
    return path == "/" or path.removeprefix("/").partition("/")[0] in _UI_PAGES


def notebook(path: str) -> Refusal | None:
    """Return the refusal of a path at which Dagster's web server shows notebooks."""
    if _NOTEBOOK.fullmatch(path):
        return Refusal(403, "notebooks are not served: a script in one could do whatever the UI can")
    return None


def other_than_json(headers: Headers) -> Refusal | None:
    """Return the refusal of a body of another type than JSON, which a page can send without asking first."""
    # Exactly this type: `text/plain; application/json` needs no preflight, and a careless reader takes it for JSON.
    if headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        return Refusal(415, "POST takes the content type application/json only")
    return None


def path_trick(scope: Scope) -> Refusal | None:
    """Return the refusal of a path that two readers could understand in two ways.

    An encoded slash is let through where it is part of a name: in the id of a task, which may be anything, in the name
    of a model, which OpenAI's client encodes, and in the address of a page of Dagster's UI, which encodes the parts of
    asset keys so. Nothing there decides by the path.
    """
    raw, path = scope["raw_path"].decode("latin-1"), scope["path"]
    if not raw.startswith("/"):
        return Refusal(400, "the path does not begin with a slash")
    if "//" in raw:
        return Refusal(400, "the path has an empty part: `//`")
    if _CONTROL.search(path):
        return Refusal(400, "the path has a control character in it")
    if _DOTS.search(path):
        return Refusal(400, "the path has a part `.` or `..`")
    if "\\" in raw or ("\\" in path and not raw.startswith(_TASKS)):
        return Refusal(400, "the path has a backslash in it")
    if _ENCODED_SLASH.search(raw) and not (raw.startswith(_NAMES) or _is_read_page(scope, raw)):
        return Refusal(400, "the path has an encoded slash in it: `%2F`")
    return None


def _is_read_page(scope: Scope, raw: str) -> bool:
    below = _below_dagster(raw)
    return below is not None and is_ui_page(below) and scope.get("method") in ("GET", "HEAD")


def _below_dagster(path: str) -> str | None:
    """`/dagster/runs` -> `/runs`; None for what is not Dagster's."""
    if path == PATH_PREFIX:
        return "/"
    return path.removeprefix(PATH_PREFIX) if path.startswith(f"{PATH_PREFIX}/") else None


class Origins:
    """An ASGI layer that lets through what a page of this server, of `gateway.cors_origins`, or a program may send."""

    def __init__(self, app: ASGIApp, settings: Settings, address: ServerAddress) -> None:
        self._hosts = address.hosts | {host.lower() for host in settings.gateway.hosts}
        self._any_number = address.is_everywhere
        self._trusted = frozenset(settings.gateway.cors_origins)
        self._app = _with_cors(app, self._trusted) if self._trusted else app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI has it."""
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        answered = _protecting(send, in_dagster=_below_dagster(scope["path"]) is not None)
        refused = self._refusal(scope)
        if refused is None:
            await self._app(scope, receive, answered)
        else:
            headers = {"Allow": ", ".join(_METHODS)} if refused.status == HTTPStatus.METHOD_NOT_ALLOWED else {}
            problem = Problem(HTTPStatus(refused.status), refused.reason, headers=headers)
            await refuse(problem.response, scope, receive, answered)

    def _refusal(self, scope: Scope) -> Refusal | None:
        headers = Headers(scope=scope)
        host = headers.get("host", "").lower()
        return (
            repeated_header(headers)
            or path_trick(scope)
            or self._other_host(host)
            or self._other_page(scope, headers, host)
            or notebook(_below_dagster(scope["path"]) or "")
            or _other_method(scope, headers)
        )

    def _other_host(self, host: str) -> Refusal | None:
        if host in self._hosts or (self._any_number and _is_number(host)):
            return None
        return Refusal(403, f"{host!r} is not an address of this server; the setting gateway.hosts adds one")

    def _other_page(self, scope: Scope, headers: Headers, host: str) -> Refusal | None:
        if headers.get("origin", "").lower() in self._trusted:
            return None
        below = _below_dagster(scope["path"])
        is_page = scope["path"] in _PAGES if below is None else is_ui_page(below)
        return foreign_page(scope, headers, host, linked_to=is_page)


def _other_method(scope: Scope, headers: Headers) -> Refusal | None:
    if scope["type"] == "websocket":
        return None
    if scope["method"] not in _METHODS:
        return Refusal(405, f"the method {scope['method']!r} is not served")
    if scope["method"] == "POST" and scope["path"] not in FORMS:
        return other_than_json(headers)
    return None


def _is_number(host: str) -> bool:
    """`10.0.0.5:8000` and `[fd00::1]` are addresses in numbers, `db5.example` is a name."""
    name = host[1:].partition("]")[0] if host.startswith("[") else host.partition(":")[0]
    try:
        ip_address(name)
    except ValueError:
        return False
    return True


def _with_cors(app: ASGIApp, origins: Collection[str]) -> ASGIApp:
    return CORSMiddleware(
        app,
        allow_origins=origins,
        allow_methods=("GET", "POST", "DELETE"),
        allow_headers=("Authorization", "Last-Event-ID"),
        allow_private_network=True,  # the operator has named the origin
        expose_headers=("Retry-After",),
    )


def _protecting(send: Send, *, in_dagster: bool) -> Send:
    """The same `send`, with headers by which browsers keep the answer from other pages, and foreign scripts from ours.

    Dagster's pages have a policy of their own, to which ours about frames is added.
    """

    async def protecting(message: Message) -> None:
        if message["type"] == "http.response.start":
            message = {**message, "headers": _protected(message.get("headers", ()), in_dagster=in_dagster)}
        await send(message)

    return protecting


def _protected(headers: Iterable[tuple[bytes, bytes]], *, in_dagster: bool) -> list[tuple[bytes, bytes]]:
    headers = list(headers)
    present = {name.lower() for name, _ in headers}
    if in_dagster:
        headers.append(_DAGSTER_POLICY)
        headers += [_ENCODED[name] for name in PROTECTION if _ENCODED[name][0] not in present]
    else:
        headers += [header for header in _ENCODED.values() if header[0] not in present]
    return headers
