"""An answer that a replica makes."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, AsyncIterable, Callable, Sequence
from contextlib import aclosing, suppress
from typing import Any
from uuid import uuid4

from ray.exceptions import NodeDiedError, OutOfMemoryError, RayActorError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from starlette.types import Message, Scope, Send

from radar.serve.admission import Admission
from radar.serve.errors import ApiError
from radar.serve.replica import FOUND
from radar.serve.sending import Sending

__all__ = ["Forwarded", "asked"]

TRIES = 3  # replicas that a request may bring down, if it is what does, or find full
PAUSE = 0.1  # seconds between looks for room
_DEAD = (RayActorError, OutOfMemoryError, NodeDiedError, WorkerCrashedError)  # by whatever has killed it
_PASSED_ON = ("method", "path", "raw_path", "query_string", "http_version", "scheme")


def asked(scope: Scope) -> dict[str, Any]:
    """What a replica is to know of a request: no key among it, and the id that it has here."""
    headers = [pair for pair in scope["headers"] if pair[0] not in (b"authorization", b"x-request-id")]
    headers.append((b"x-request-id", scope["state"]["log"]["request_id"].encode()))
    return {name: scope[name] for name in _PASSED_ON if name in scope} | {"headers": headers}


class Forwarded(Sending):
    """Asks a replica; another one where it dies before a byte of its answer has been sent on, or is full.

    Args:
        replicas: Ray Serve's handle.
        scope, body: of the request.
        conversation: that it goes on with; None: none is known.
        admission: of the ingress, which counts requests.
        seconds: that it may take.
    """

    def __init__(
        self, replicas: Any, scope: Scope, body: bytes, conversation: str | None, admission: Admission, seconds: float
    ) -> None:
        super().__init__(admission, 1, seconds)
        self._replicas, self._asked, self._body, self._conversation = replicas, asked(scope), body, conversation
        self._found: dict[str, Any] = {}
        self._start: Message = {}

    async def make(self, send: Send, ended: Callable[[], None]) -> None:
        """See `Sending`."""
        place, died, full = self._conversation or uuid4().hex, 0, 0
        while True:
            options = self._replicas.options(method_name="answer", stream=True, session_id=place)
            answer = options.remote(self._asked, self._body)
            try:
                if await self._pass_on(answer, send, ended, is_last=full == TRIES - 1 and not died):
                    return
                place, full = uuid4().hex, full + 1
                await asyncio.sleep(PAUSE if full >= TRIES else 0)
            except _DEAD as error:  # the router knows that it is gone
                died += 1
                if self._begun:
                    raise ApiError(503, "the replica that made this text has died: ask again") from error
                if died == TRIES:
                    raise ApiError(
                        503,
                        f"{TRIES} replicas have died of this request, or while it was there: ask for something else",
                        headers={"x-should-retry": "false"},  # of OpenAI's clients, which would bring down the next
                    ) from error
            except (BackPressureError, DeploymentUnavailableError) as error:
                if not died:
                    raise self._refusal(error) from error
                await asyncio.sleep(PAUSE)  # it has been taken in, and waits as long as its time lasts
            finally:
                with suppress(Exception):  # of one that was never taken in, again what it was refused by
                    answer.cancel()

    def _refusal(self, error: BackPressureError | DeploymentUnavailableError) -> ApiError:
        if isinstance(error, DeploymentUnavailableError):
            return ApiError(503, "there is no replica: try again later", headers={"Retry-After": "5"})
        return ApiError(
            429,
            "all replicas are full, and as many requests wait as may: try again later",
            code="rate_limit_exceeded",
            headers={"Retry-After": str(self._admission.patience())},
        )

    async def _pass_on(
        self, answer: AsyncIterable[Sequence[Message]], send: Send, ended: Callable[[], None], *, is_last: bool
    ) -> bool:
        """Send the answer on. Returns whether it was one: a replica without room for the texts of this request says
        so, and another one may have it."""
        end: Message | None = None  # waits for what the log says of it: with it the client may leave
        try:
            async with aclosing(_each(answer, ended)) as messages:
                async for message in messages:
                    kind = message["type"]
                    if kind == "http.response.start":
                        if message["status"] == 429 and not is_last:
                            return False
                        self._start = message
                    elif kind == FOUND:
                        self._found = message["fields"]
                    elif message.get("more_body"):
                        await self._send(send, message)
                    else:
                        end = message
        except _DEAD:
            if end is None:
                raise
        if end is not None:
            await self._send(send, end)
        return True

    async def _send(self, send: Send, body: Message) -> None:
        if not self._begun:  # until now another replica could begin anew
            headers = [pair for pair in self._start["headers"] if pair[0] != b"x-request-id"]
            self.streams = any(value.startswith(b"text/event-stream") for _, value in headers)
            await self.begin(send, headers, self._start["status"])
        await send(body)

    def finish(self, found: dict[str, Any]) -> None:
        """See `Sending`."""
        found |= {name: value for name, value in self._found.items() if name not in ("request_id", "status")}


async def _each(answer: AsyncIterable[Sequence[Message]], ended: Callable[[], None]) -> AsyncGenerator[Message, None]:
    """Messages as they come, taken in whether or not they are read: who reads slowly keeps no place. `ended` is told
    of an answer that is there to its end, of no refusal: another replica may be asked yet."""
    made = asyncio.Queue[Sequence[Message] | Exception | None]()

    async def take() -> None:
        status = None
        try:
            async for batch in answer:
                status = status or (batch[0].get("status") if batch else None)
                made.put_nowait(batch)
            if status != 429:
                ended()
            made.put_nowait(None)
        except Exception as error:  # who reads gets it
            made.put_nowait(error)

    task = asyncio.ensure_future(take())
    try:
        while (found := await made.get()) is not None:
            if isinstance(found, Exception):
                raise found
            for message in found:
                yield message
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
