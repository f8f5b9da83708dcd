"""An answer that is made while it is sent, and ends at once when nobody reads it any more."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import suppress
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from radar.serve.admission import Admission
from radar.serve.errors import ApiError, api_error
from radar.serve.jsontext import dumps
from radar.serve.logs import failure

__all__ = ["Sending"]

LAST_WORDS = 2.0  # seconds that a client has to take an error's event in


class Sending(Response):
    """JSON, or server-sent events.

    Args:
        admission: of the server.
        count: texts of the request.
        seconds: that it may take, from now to its last byte.

    Attributes:
        streams: whether its errors can be told as events.
    """

    def __init__(self, admission: Admission, count: int, seconds: float, *, streams: bool = False) -> None:
        super().__init__()
        self._admission, self._count, self._seconds = admission, count, seconds
        self.streams = streams
        self._begun = False

    async def make(self, send: Send, ended: Callable[[], None]) -> None:
        """Send all of it; `ended` is told of each text that has come to its end."""
        raise NotImplementedError

    def finish(self, found: dict[str, Any]) -> None:
        """However it ended: let go of what it held, and add to its line in the log."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Raises ApiError if there is no room. As long as no byte has been sent errors are answers, then events."""
        found, refused = scope["state"]["log"], None
        with self._admission.admitted(self._count) as ended:
            try:
                await self._while_wanted(receive, self.make(send, ended))
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
                elif not (self.streams and await self._end(send, said)):
                    await _drop(scope)
            finally:
                self.finish(found)

        if refused is not None:
            await refused.response()(scope, receive, send)

    async def begin(self, send: Send, headers: list[tuple[bytes, bytes]], status: int = 200) -> None:
        """Send what comes before the body."""
        await send({"type": "http.response.start", "status": status, "headers": list(headers)})
        self._begun = True  # not before: what is waited for may be another answer's bytes

    async def _while_wanted(self, receive: Receive, work: Coroutine[Any, Any, None]) -> None:
        """Do the work until the client goes, the time is over or the server ends."""
        task = asyncio.ensure_future(work)
        gone = asyncio.ensure_future(_until_gone(receive))
        stop = asyncio.ensure_future(self._admission.stopping.wait())
        try:
            await asyncio.wait((task, gone, stop), timeout=self._seconds, return_when=asyncio.FIRST_COMPLETED)
            if task.done():
                task.result()
                return
            if gone.done():
                raise _GoneError
            if stop.done():
                raise ApiError(503, "the server was shut down before the text had ended", headers={"Retry-After": "5"})
            raise ApiError(
                504,
                f"the text had not ended after {self._seconds:g} seconds: ask for fewer tokens",
                headers={"x-should-retry": "false"},  # of OpenAI's clients, which would ask for all of it again
            )
        finally:
            for one in (task, gone, stop):
                one.cancel()
            await asyncio.gather(task, gone, stop, return_exceptions=True)

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
