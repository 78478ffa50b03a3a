"""Routes whose endpoint takes the request as it is: those that are called a thousand times a second.

FastAPI's way from a request to the arguments of an endpoint takes longer than accepting a task. A `DirectRoute` is
documented as any other one. Its dependencies, and those of the router that it is made by, are called, each with the
request alone; `check_dependencies` refuses any that were given elsewhere, which would be documented and not called.
"""

from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, cast

from fastapi import FastAPI, Request, Response
from fastapi.routing import APIRoute, iter_route_contexts

_Check = Callable[[Request], Awaitable[object]]


class DirectRoute(APIRoute):
    """A route with an endpoint, and dependencies, whose only argument is the request; the endpoint's is a response."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return what calls the dependencies and the endpoint. Called by FastAPI for each router the route is in."""
        checks = [cast(_Check, each.dependency) for each in self.dependencies]
        endpoint = cast(Callable[[Request], Awaitable[Response]], self.endpoint)

        async def handle(request: Request) -> Response:
            for check in checks:
                await check(request)
            return await endpoint(request)

        return handle


def check_dependencies(app: FastAPI) -> None:
    """Raise `TypeError` where a direct route got dependencies from the app, or from where its router was included."""
    for context in iter_route_contexts(app.routes):
        route = context.original_route
        if isinstance(route, DirectRoute) and list(context.dependencies) != list(route.dependencies):
            raise TypeError(f"{context.path} is a direct route: give its dependencies to the router that makes it")
