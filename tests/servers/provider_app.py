"""The application of the tests' provider: OpenAI's protocol, limits by key, faults by plan, and what it was asked.

Run by `provider.serving_provider` as a process of its own: `python -m tests.servers.provider_app`.
"""

import asyncio
import json
import os
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import replace
from email.utils import formatdate
from typing import Any

from aiohttp import web

from tests.servers.provider_answers import (
    REFUSED_TEXT,
    chat_content,
    count_tokens,
    digest_of,
    packed,
    vector_of,
)
from tests.servers.provider_limits import KeyUse
from tests.servers.provider_plan import Fault, Plan, plan_from


class Provider:
    """The state of the server: the plan in force, and what happened."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.uses = {key: KeyUse(limits, plan.second, plan.minute) for key, limits in plan.keys.items()}
        self._fitting = Counter[int]()
        self.statuses = Counter[str]()
        self.answered = Counter[str]()
        self.asked = Counter[str]()

    def change(self, changes: Mapping[str, Any]) -> None:
        """Change parts of the plan; what was counted stays, and so do the windows of keys whose limits stay."""
        self.plan = replace(self.plan, **changes)
        if "faults" in changes:
            self._fitting.clear()
        for key, limits in self.plan.keys.items():
            if key not in self.uses:
                self.uses[key] = KeyUse(limits, self.plan.second, self.plan.minute)
            self.uses[key].limits = limits

    def report(self) -> dict[str, Any]:
        """Return what happened, as JSON."""
        return {
            "statuses": dict(self.statuses),
            "answered": dict(self.answered),
            "asked": dict(self.asked),
            "keys": {
                key: {
                    "requests": use.requests,
                    "accepted": use.accepted,
                    "running": use.running,
                    "most_running": use.most_running,
                    "most_early": use.most_early,
                    "violations": dict(use.violations),
                }
                for key, use in self.uses.items()
            },
        }

    def fault_of(self, path: str, key: str, body: str) -> Fault | None:
        """Return what goes wrong with a request, which counts for all faults that it fits up to that one."""
        for place, fault in enumerate(self.plan.faults):
            if fault.path not in (None, path) or fault.key not in (None, key):
                continue
            if fault.contains is not None and fault.contains not in body:
                continue
            self._fitting[place] += 1
            nth, remainder = divmod(self._fitting[place], fault.every)
            if remainder == 0 and (fault.count is None or nth <= fault.count):
                return fault
        return None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        """Answer a request for `chat/completions` or `embeddings`."""
        path = "chat" if request.path.endswith("/chat/completions") else "embeddings"
        answer = await self._answer(request, path)
        self.statuses[str(answer.status)] += 1
        answer.headers["Date"] = formatdate(time.time() + self.plan.clock_skew_seconds, usegmt=True)
        return answer

    async def _answer(self, request: web.Request, path: str) -> web.StreamResponse:
        text = (await request.read()).decode()
        body = json.loads(text)
        key = request.headers.get("Authorization", "").removeprefix("Bearer ")
        use = self.uses.get(key) if key in self.plan.keys else None
        if use is None:
            return _error(401, f"Incorrect API key provided: {key}.", "invalid_api_key")
        content = body["messages"] if path == "chat" else body["input"]
        tokens = count_tokens(content)
        self.asked[digest_of(content)] += 1
        fault = self.fault_of(path, key, text)
        if fault is not None and fault.kind in _STATUSES:
            return self._failed(fault, key)
        wait = use.admit(tokens + (self.plan.completion_tokens if path == "chat" else 0))
        if wait is not None:
            return self._failed(Fault("rate_limited", seconds=wait), key)
        try:
            if fault is not None and fault.kind == "stall":
                await asyncio.sleep(fault.seconds)
            await asyncio.sleep(self.plan.answer_seconds)
        finally:
            use.end()
        if REFUSED_TEXT in text:
            return _error(400, "The content is refused by the content policy.", "content_policy_violation")
        if fault is not None and fault.kind == "html":
            return web.Response(text="<html><body>Please log in.</body></html>", content_type="text/html")
        if fault is not None and fault.kind == "empty":
            return web.json_response({})
        made = self._chat(body, tokens, fault) if path == "chat" else self._embeddings(body, tokens)
        if fault is not None and fault.kind == "cut" and made.status == 200:
            return await _cut(request, made)
        if made.status == 200:
            self.answered[digest_of(content)] += 1
        return made

    def _chat(self, body: Mapping[str, Any], tokens: int, fault: Fault | None) -> web.Response:
        content = chat_content(body)
        if fault is not None and fault.kind == "no_json":
            content = "I would say that the risk is rather low."
        elif fault is not None and fault.kind == "other_schema":
            content = '{"verdict": "fine"}'
        elif fault is not None and fault.kind == "surrogate":
            content = '{"level": "\ud83d'
        message: dict[str, Any] = {"role": "assistant", "content": content}
        if fault is not None and fault.kind == "no_text":
            message["refusal"] = {"reason": "the policy"}
        choice = {"index": 0, "message": message, "finish_reason": "stop"}
        usage = _usage(tokens, self.plan.completion_tokens)
        if fault is not None and fault.kind == "no_usage":
            usage = {"prompt_tokens": -5, "completion_tokens": 1}
        return web.json_response(
            {
                "id": "chatcmpl-1",
                "object": "chat.completion",
                "created": int(time.time()),
                "model": body["model"],
                "choices": [choice],
                "usage": usage,
            }
        )

    def _embeddings(self, body: Mapping[str, Any], tokens: int) -> web.Response:
        given = body["input"] if isinstance(body["input"], list) else [body["input"]]
        if len(given) > self.plan.max_inputs or tokens > self.plan.max_input_tokens:
            return _error(400, f"batch size is invalid, it should not be larger than {self.plan.max_inputs}.", "batch")
        dimension = body.get("dimensions") or self.plan.dimensions.get(body["model"], self.plan.dimension)
        vectors = [vector_of(body["model"], each, dimension) for each in given]
        as_text = body.get("encoding_format") == "base64"
        data = [
            {"object": "embedding", "index": index, "embedding": packed(vector) if as_text else vector}
            for index, vector in enumerate(vectors)
        ]
        data.reverse()  # whoever goes by the order of the answer is mistaken
        return web.json_response({"object": "list", "data": data, "model": body["model"], "usage": _usage(tokens, 0)})

    def _failed(self, fault: Fault, key: str) -> web.Response:
        status, message, code = _STATUSES[fault.kind]
        if fault.kind == "bad_gateway":
            page = "<html><head><title>502 Bad Gateway</title></head><body>nginx</body></html>"
            return web.Response(status=502, text=page, content_type="text/html")
        answer = _error(status, message.format(key=key), code)
        if fault.kind == "rate_limited":
            answer.headers.update(self._repeat_after(fault))
        return answer

    def _repeat_after(self, fault: Fault) -> dict[str, str]:
        match fault.header:
            case "retry-after":
                return {"Retry-After": f"{fault.seconds:.3f}"}
            case "retry-after-ms":
                return {"Retry-After-Ms": f"{fault.seconds * 1000:.0f}"}
            case "date":
                at = time.time() + self.plan.clock_skew_seconds + fault.seconds
                return {"Retry-After": formatdate(at, usegmt=True)}
            case "reset":
                minutes, seconds = divmod(fault.seconds, 60)
                return {
                    "X-RateLimit-Remaining-Requests": "0",
                    "X-RateLimit-Reset-Requests": f"{minutes:.0f}m{seconds:.3f}s" if minutes else f"{seconds:.3f}s",
                }
        return {}


_STATUSES = {
    "rate_limited": (429, "Rate limit reached for requests.", "rate_limit_exceeded"),
    "server_error": (500, "The server had an error while processing your request.", "server_error"),
    "bad_gateway": (502, "", ""),
    "unauthorized": (401, "Incorrect API key provided: {key}.", "invalid_api_key"),
    "forbidden": (403, "The key {key} has no access to this model.", "forbidden"),
    "refused": (400, "The content is refused by the content policy.", "content_policy_violation"),
    "unknown_parameter": (400, "Unrecognized request argument supplied.", "unknown_parameter"),
    "not_found": (404, "The model does not exist.", "model_not_found"),
}


def _usage(prompt: int, completion: int) -> dict[str, int]:
    usage = {"prompt_tokens": prompt, "total_tokens": prompt + completion}
    return usage if completion == 0 else {**usage, "completion_tokens": completion}


def _error(status: int, message: str, code: str) -> web.Response:
    error = {"message": message, "type": "error", "param": None, "code": code}
    return web.json_response({"error": error}, status=status)


async def _cut(request: web.Request, whole: web.Response) -> web.StreamResponse:
    """Send half of an answer, and end the connection."""
    body = whole.body
    assert isinstance(body, bytes)
    answer = web.StreamResponse(headers={"Content-Type": "application/json", "Content-Length": str(len(body))})
    await answer.prepare(request)
    await answer.write(body[: len(body) // 2])
    if request.transport is not None:
        request.transport.abort()
    return answer


def application() -> web.Application:
    """Return the application: `/v1/…` as OpenAI has it, `/control` for the plan and the report."""
    current = Provider(Plan())

    async def control(request: web.Request) -> web.Response:
        nonlocal current
        if request.method == "PUT":
            current = Provider(Plan(**plan_from(await request.json())))
        elif request.method == "PATCH":
            current.change(plan_from(await request.json()))
        return web.json_response(current.report())

    async def handle(request: web.Request) -> web.StreamResponse:
        return await current.handle(request)

    app = web.Application(client_max_size=64 * 2**20)
    app.router.add_post("/v1/chat/completions", handle)
    app.router.add_post("/v1/embeddings", handle)
    for method in ("GET", "PUT", "PATCH"):
        app.router.add_route(method, "/control", control)
    return app


async def _serve() -> None:
    runner = web.AppRunner(application(), access_log=None, handler_cancellation=True)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0, backlog=4096)
    await site.start()
    assert runner.addresses
    print(runner.addresses[0][1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, _until_input_ends)


def _until_input_ends() -> None:
    """The process that started this one holds the other end: it ends with it, however that is killed."""
    import sys

    sys.stdin.buffer.read()


def _go_before_others() -> None:
    """Note at once when a request comes, where that is allowed: a provider is another machine than the busy one."""
    with suppress(PermissionError):
        os.nice(-15)


if __name__ == "__main__":
    _go_before_others()
    asyncio.run(_serve())
