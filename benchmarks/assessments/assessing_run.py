"""One drain run over tasks, or the bare client with the same questions, in this process; prints what it took as JSON.

Called by `assessing.py`, each time in a process of its own:
python -m benchmarks.assessments.assessing_run drain|bare SETTINGS
"""

import asyncio
import json
import sys
import threading
import time
from functools import partial
from typing import Any

import psutil

from benchmarks.assessments.assessing import KEY
from vectorize_pipelines.kafka.reading import TopicReader
from vectorize_pipelines.messaging.assessments import AssessmentTaskMessage
from vectorize_pipelines.pipeline.assessments.drain_request import DrainRequest
from vectorize_pipelines.pipeline.assessments.prompt import SYSTEM, RiskAnswer, picture_of, prompt_of
from vectorize_pipelines.pipeline.assessments.runs import open_drain
from vectorize_pipelines.providers.configured import configured_chat_model
from vectorize_pipelines.providers.questions import Question
from vectorize_pipelines.settings import Settings, load_settings

MIB = 2**20
SAMPLE_SECONDS = 0.25


def main() -> None:
    kind, tree = sys.argv[1:]
    settings = load_settings({}, **json.loads(tree))
    print(json.dumps(drain(settings) if kind == "drain" else asyncio.run(bare(settings))))


def drain(settings: Settings) -> dict[str, Any]:
    """Drain the topic; the time runs from when the run is open and the client's library is there."""
    import openai  # noqa: F401 (which takes seconds, once a process)

    samples: list[tuple[int, int]] = []
    ended = threading.Event()
    with open_drain(settings, DrainRequest("bench", once=True), partial(configured_chat_model, settings)) as run:

        def sample() -> None:
            process = psutil.Process()
            while not ended.wait(SAMPLE_SECONDS):
                samples.append((int(run.figures()["messages"]), process.memory_info().rss))

        threading.Thread(target=sample, daemon=True).start()
        started, cpu = time.perf_counter(), time.process_time()
        run.run()
        seconds, cpu_seconds = time.perf_counter() - started, time.process_time() - cpu
        ended.set()
    total = run.figures()["messages"]
    # Before so many messages the run still fills what it holds of them at a time.
    early = [rss for messages, rss in samples if messages <= max(total // 10, 20_000)]
    late = [rss for messages, rss in samples if messages > max(total // 10, 20_000)]
    return {
        "seconds": seconds,
        "cpu_seconds": cpu_seconds,
        "judged": sum(day.completed for day in run.days.values()),
        "early_mib": max(early, default=0) / MIB,
        "late_mib": max(late, default=max(early, default=0)) / MIB,
    }


async def bare(settings: Settings) -> dict[str, Any]:
    """Ask the same questions with nothing but the client, as many side by side."""
    import httpx2
    from openai import AsyncOpenAI, DefaultAioHttpClient

    with TopicReader(settings.kafka, settings.kafka.assessment_tasks_topic) as reader:
        tasks = [AssessmentTaskMessage.from_json(message.value()) for message in reader.to_end()]
    limit = asyncio.Semaphore(settings.assessments.concurrency)
    most = settings.assessments.concurrency
    client = AsyncOpenAI(
        api_key=KEY,
        base_url=settings.providers.base_url,
        max_retries=0,
        # The faster one of the two that the client can be had with.
        http_client=DefaultAioHttpClient(
            timeout=60, limits=httpx2.Limits(max_connections=most, max_keepalive_connections=most)
        ),
    )

    async def ask(task: AssessmentTaskMessage) -> None:
        async with limit:
            picture = picture_of(task, settings.assessments.max_image_bytes)
            uris = [picture.data_uri] if picture is not None else []
            question = Question.make(SYSTEM, prompt_of(task), uris, RiskAnswer, settings.providers)
            request: dict[str, Any] = {"model": settings.providers.model, "messages": question.messages}
            if question.response_format is not None:
                request["response_format"] = question.response_format
            response = await client.chat.completions.create(**request)
            RiskAnswer.model_validate_json(response.choices[0].message.content or "")

    started, cpu = time.perf_counter(), time.process_time()
    async with client:
        await asyncio.gather(*map(ask, tasks))
    return {"seconds": time.perf_counter() - started, "cpu_seconds": time.process_time() - cpu, "calls": len(tasks)}


if __name__ == "__main__":
    main()
