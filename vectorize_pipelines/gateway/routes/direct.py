"""Routes whose endpoint takes the request as it is: those that are called a thousand times a second.

FastAPI's way from a request to the arguments of an endpoint takes longer than accepting a task. A `DirectRoute` is
documented as any other one, and its dependencies are called, each with the request alone.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from fastapi import Request, Response
from fastapi.routing import APIRoute

_Check = Callable[[Request], Awaitable[object]]


class DirectRoute(APIRoute):
    """A route with an endpoint, and dependencies, whose only argument is the request; the endpoint's is a response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Called by FastAPI when the route is added."""
        checks = [cast(_Check, each.dependency) for each in self.dependencies]
        endpoint = cast(Callable[[Request], Awaitable[Response]], self.endpoint)

        async def handle(request: Request) -> Response:
            for check in checks:
                await check(request)
            return await endpoint(request)

        return handle
