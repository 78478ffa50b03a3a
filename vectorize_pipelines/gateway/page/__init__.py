"""The files of the page for people who would rather look, and answers made of them.

Called by `routes.pages`, which has the routes, and by the sign-in. There is a fixed set of files: no name in a request
becomes part of a path.
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from html import escape
from http import HTTPStatus
from importlib.resources import files
from string import Template

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

#: Names of files below `/static`; those in `swagger/` are of the package `swagger_ui_bundle`.
STATIC = frozenset(
    (
        "cameras.css",
        "cameras.js",
        "docs.js",
        "icon.svg",
        "parts.js",
        "script.js",
        "style.css",
        "swagger/swagger-ui-bundle.js",
        "swagger/swagger-ui.css",
    )
)
_SWAGGER = "swagger/"
_MEDIA_TYPES = {
    "css": "text/css; charset=utf-8",
    "html": "text/html; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
#: Nothing is loaded from elsewhere, no script or style stands in a page itself, and none of it can be framed.
_POLICY = (
    "default-src 'self'; img-src 'self' data:; object-src 'none'; base-uri 'none'; form-action 'self'; "
    "frame-ancestors 'none'"
)
#: The browser itself keeps our script from making markup of a text.
_NO_MARKUP_FROM_TEXT = "; require-trusted-types-for 'script'; trusted-types 'none'"
_HEADERS = {
    "Cache-Control": "no-cache",
    "X-Content-Type-Options": "nosniff",
    # An address has what was searched for. A form's request to this server has its origin all the same.
    "Referrer-Policy": "same-origin",
}


@dataclass(frozen=True, slots=True)
class PageFile:
    """A file as it is sent. `etag` is another one whenever the content is."""

    content: bytes
    media_type: str
    etag: str


@cache
def page_file(name: str) -> PageFile:
    """Return a file by a name that stands in this project's code, never by one of a request."""
    if name.startswith(_SWAGGER):
        from swagger_ui_bundle import swagger_ui_path

        content = (swagger_ui_path / name.removeprefix(_SWAGGER)).read_bytes()
    else:
        content = (files(__name__) / name).read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'
    return PageFile(content, _MEDIA_TYPES[name.rpartition(".")[2]], etag)


def answer_file(request: Request, name: str, *, vary: str | None = None) -> Response:
    """Return a file, or the answer that the client has it already. `vary` names headers that chose this file."""
    file = page_file(name)
    headers = {**_HEADERS, "ETag": file.etag}
    if name.endswith(".html"):
        own = name != "docs.html"  # Swagger UI makes markup of descriptions
        headers["Content-Security-Policy"] = _POLICY + (_NO_MARKUP_FROM_TEXT if own else "")
    if vary is not None:
        headers["Vary"] = vary
    known = (tag.strip().removeprefix("W/") for tag in request.headers.get("if-none-match", "").split(","))
    if file.etag in known:
        return Response(status_code=HTTPStatus.NOT_MODIFIED, headers=headers)
    return Response(file.content, media_type=file.media_type, headers=headers)


def answer_signin(
    next_path: str,
    error: str = "",
    status: HTTPStatus = HTTPStatus.OK,
    headers: Mapping[str, str] | None = None,
) -> HTMLResponse:
    """Return the form for signing in, which goes on to `next_path`, with what was wrong with the attempt before."""
    form = Template(page_file("signin.html").content.decode())
    content = form.substitute(next=escape(next_path), error=escape(error))
    own = {**_HEADERS, "Cache-Control": "no-store", "Content-Security-Policy": _POLICY + _NO_MARKUP_FROM_TEXT}
    return HTMLResponse(content, status, {**own, **(headers or {})})
