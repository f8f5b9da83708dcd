"""The answer of a request: decodes while it is sent, and ends at once when nobody reads it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from radar.serve.admission import Admission
from radar.serve.ahead import merged
from radar.serve.errors import ApiError, api_error
from radar.serve.jobs import Job
from radar.serve.jsontext import dumps
from radar.serve.logs import failure
from radar.serve.metrics import ServerMetrics
from radar.serve.texts import Piece

__all__ = ["Answer"]

LAST_WORDS = 2.0  # seconds that a client has to take an error's event in
_EVENTS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would collect them
]


class Answer(Response):
    """JSON, or server-sent events.

    Args:
        job: the request.
        admission: of the server.
        metrics: of the server.
    """

    def __init__(self, job: Job, admission: Admission, metrics: ServerMetrics) -> None:
        super().__init__()
        self._job, self._admission, self._metrics = job, admission, metrics
        self._begun = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError if there is no room. As long as no byte has been sent errors are answers, then events."""
        job, found, refused = self._job, scope["state"]["log"], None
        with self._admission.admitted(job.count) as ended:
            try:
                await self._while_wanted(receive, (self._stream if job.streams else self._whole)(send, ended))
            except asyncio.CancelledError:
                found["ended"] = "cancelled"
                raise
            except _GoneError:
                found["ended"] = "client left"
            except Exception as error:
                said = api_error(error)
                found["ended"] = said.detail if said.status_code >= 500 else said.code or "refused"  # none of its words
                if said.status_code == 500:
                    failure(error, found)
                if not self._begun:
                    refused = said
                elif not (job.streams and await self._end(send, said)):
                    await _drop(scope)
            finally:
                for text in job.texts:
                    text.close()
                self._metrics.observe(job)
                found |= {
                    "model": job.model.name,
                    "prompt_tokens": sum(text.num_prompt_tokens for text in job.texts[:: job.num_choices]),
                    "completion_tokens": sum(text.num_tokens for text in job.texts),
                    "finish_reasons": [text.finish_reason for text in job.texts],
                }

        if refused is not None:
            await refused.response()(scope, receive, send)

    async def _while_wanted(self, receive: Receive, work: Any) -> None:
        """Do the work until the client goes, the time is over or the server ends."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_until_gone(receive))
        stop = asyncio.ensure_future(self._admission.stopping.wait())
        seconds = self._job.limits.max_seconds
        try:
            await asyncio.wait((task, gone, stop), timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
            if gone.done():
                raise _GoneError
            if stop.done():
                raise ApiError(503, "the server was shut down before the text had ended", headers={"Retry-After": "5"})
            raise ApiError(
                504,
                f"the text had not ended after {seconds:g} seconds: ask for fewer tokens",
                headers={"x-should-retry": "false"},  # of OpenAI's clients, which would ask for all of it again
            )
        finally:
            for one in (task, gone, stop):
                one.cancel()
            await asyncio.gather(task, gone, stop, return_exceptions=True)

    async def _whole(self, send: Send, ended: Callable[[], None]) -> None:
        job = self._job
        texts = await asyncio.to_thread(job.open)
        pieces: list[list[Piece]] = [[] for _ in texts]
        async for found in merged(texts, ended):
            if found is not None:
                pieces[found[0]].append(found[1])
        body = await asyncio.to_thread(lambda: dumps(job.whole(pieces)))  # with log-probabilities it is much to write
        answer = Response(body, media_type="application/json")
        await self._begin(send, answer.raw_headers)
        await send({"type": "http.response.body", "body": answer.body})

    async def _stream(self, send: Send, ended: Callable[[], None]) -> None:
        job = self._job
        texts = await asyncio.to_thread(job.open)
        await self._begin(send, _EVENTS)
        await _send_events(send, job.begin())
        async for found in merged(texts, ended):
            if found is None:
                await send({"type": "http.response.body", "body": b": queued\n\n", "more_body": True})
            else:
                await _send_events(send, job.chunks(*found))
        if job.with_usage:
            await _send_events(send, [job.usage_chunk()])
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})

    async def _begin(self, send: Send, headers: list[tuple[bytes, bytes]]) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": list(headers)})
        self._begun = True  # not before: what is waited for may be another answer's bytes

    async def _end(self, send: Send, error: ApiError) -> bool:
        """An event that says why there is no more. Returns whether the client took it in."""
        with suppress(TimeoutError, OSError):
            async with asyncio.timeout(LAST_WORDS):
                await send({"type": "http.response.body", "body": b"data: " + dumps(error.body) + b"\n\n"})
                return True
        return False


class _GoneError(Exception):
    """The client has left."""


async def _until_gone(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _drop(scope: Scope) -> None:
    """End the connection of an answer that is half sent, whether or not the client reads what is on its way."""
    if abort := scope["state"].get("abort"):  # of `RadarServer`
        abort()
        await asyncio.sleep(0)  # the server learns of it


async def _send_events(send: Send, chunks: list[dict[str, Any]]) -> None:
    """Returns when the connection has taken them in: a client that reads slowly is waited for here."""
    if chunks:
        body = b"".join(b"data: " + dumps(chunk) + b"\n\n" for chunk in chunks)
        await send({"type": "http.response.body", "body": body, "more_body": True})
