"""The answer of a request: decodes while it is sent."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Send

from radar.serve.admission import Admission
from radar.serve.ahead import merged
from radar.serve.jobs import Job
from radar.serve.jsontext import dumps
from radar.serve.metrics import ServerMetrics
from radar.serve.sending import Sending
from radar.serve.texts import Piece

__all__ = ["Answer"]

_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect them
]


class Answer(Sending):
    """JSON, or server-sent events.

    Args:
        job: the request.
        admission: of the server.
        metrics: of the server.
    """

    def __init__(self, job: Job, admission: Admission, metrics: ServerMetrics) -> None:
        super().__init__(admission, job.count, job.limits.max_seconds, streams=job.streams)
        self._job, self._metrics = job, metrics

    async def make(self, send: Send, ended: Callable[[], None]) -> None:
        """See `Sending`."""
        await (self._stream if self._job.streams else self._whole)(send, ended)

    def finish(self, found: dict[str, Any]) -> None:
        """See `Sending`."""
        job = self._job
        for text in job.texts:
            text.close()
        self._metrics.observe(job)
        found |= {
            "model": job.model.name,
            "prompt_tokens": sum(text.num_prompt_tokens for text in job.texts[:: job.num_choices]),
            "completion_tokens": sum(text.num_tokens for text in job.texts),
            "finish_reasons": [text.finish_reason for text in job.texts],
        }

    async def _whole(self, send: Send, ended: Callable[[], None]) -> None:
        job = self._job
        texts = await asyncio.to_thread(job.open)
        pieces: list[list[Piece]] = [[] for _ in texts]
        async for found in merged(texts, ended):
            if found is not None:
                pieces[found[0]].append(found[1])
        body = await asyncio.to_thread(lambda: dumps(job.whole(pieces)))  # with log-probabilities it is much to write
        answer = Response(body, media_type="application/json")
        await self.begin(send, answer.raw_headers)
        await send({"type": "http.response.body", "body": answer.body})

    async def _stream(self, send: Send, ended: Callable[[], None]) -> None:
        job = self._job
        texts = await asyncio.to_thread(job.open)
        await self.begin(send, _EVENTS)
        first = job.begin()  # sent with the first text: until then another replica can begin anew
        async for found in merged(texts, ended):
            if found is None:
                await send({"type": "http.response.body", "body": b": queued\n\n", "more_body": True})
            else:
                await _send_events(send, first + job.chunks(*found))
                first = []
        if job.with_usage:
            await _send_events(send, [job.usage_chunk()])
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})


async def _send_events(send: Send, chunks: list[dict[str, Any]]) -> None:
    """Returns when the connection has taken them in: a client that reads slowly is waited for here."""
    if chunks:
        body = b"".join(b"data: " + dumps(chunk) + b"\n\n" for chunk in chunks)
        await send({"type": "http.response.body", "body": body, "more_body": True})
