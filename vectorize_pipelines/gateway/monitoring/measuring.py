"""Counts the requests to the server and takes their time. `gateway.app` puts the layer in front of everything."""

import time
from typing import Any

from prometheus_client import Counter, Histogram
from starlette.types import ASGIApp, Message, Receive, Scope, Send

#: Any other method that somebody makes up is counted as one.
_METHODS = frozenset(("GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS"))
_OTHER = "other"
#: The route of what was answered before it came to one, or that has none.
NO_ROUTE = "none"
_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
_STREAM = b"text/event-stream"


class RequestFigures:
    """Requests by method, route and status, and the time they took. In no registry: `routes.metrics` shows them."""

    def __init__(self) -> None:
        self.requests = Counter(
            "vectorize_http_requests",
            "Requests that the server has answered, by method, template of the route and status",
            ("method", "route", "status"),
            registry=None,
        )
        self.seconds = Histogram(
            "vectorize_http_request_seconds",
            "Time from a request's arrival to the end of its answer; without streams of events, which last",
            ("method", "route"),
            buckets=_BOUNDS,
            registry=None,
        )


class MeasuredRequests:
    """An ASGI layer that counts what passes it. Layers behind it hand on the scope that they got, not a copy."""

    def __init__(self, app: ASGIApp, figures: RequestFigures) -> None:
        self._app = app
        self._figures = figures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one connection, as ASGI has it."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began = time.perf_counter()
        answer: dict[str, Any] = {"status": None, "lasts": False}

        async def watched(message: Message) -> None:
            if message["type"] == "http.response.start":
                answer["status"] = message["status"]
                headers = dict(message.get("headers", ()))
                answer["lasts"] = headers.get(b"content-type", b"").startswith(_STREAM)
                if answer["lasts"]:
                    self._count(scope, message["status"])
            await send(message)

        try:
            await self._app(scope, receive, watched)
        except Exception:
            answer["status"] = answer["status"] or 500  # what the server in front answers then
            raise
        finally:
            if answer["status"] is not None and not answer["lasts"]:
                self._count(scope, answer["status"])
                seconds = time.perf_counter() - began
                self._figures.seconds.labels(_method(scope), route_of(scope)).observe(seconds)

    def _count(self, scope: Scope, status: int) -> None:
        self._figures.requests.labels(_method(scope), route_of(scope), str(status)).inc()


def route_of(scope: Scope) -> str:
    """Return the template of the route that has handled a request, as `/tasks/{task_id}`: there are only so many."""
    route = scope.get("route")
    if route is None and "endpoint" in scope:  # Starlette's own kinds of routes do not name themselves
        routes = getattr(scope.get("app"), "routes", ())
        route = next((each for each in routes if scope["endpoint"] in _handlers(each)), None)
    path: str = getattr(route, "path_format", NO_ROUTE)  # without the kinds of its parameters
    return path


def _handlers(route: Any) -> tuple[Any, ...]:
    return getattr(route, "endpoint", None), getattr(route, "app", None)


def _method(scope: Scope) -> str:
    method: str = scope["method"]
    return method if method in _METHODS else _OTHER
