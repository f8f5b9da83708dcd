"""What every request passes: an id, the key, the limit of its body, a line in the log."""

from __future__ import annotations

import asyncio
import hmac
import re
import time
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from prometheus_client import Counter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from radar.serve.errors import ApiError, api_error
from radar.serve.logs import failure, log
from radar.serve.settings import Limits

__all__ = ["Gate"]

_OPEN = ("/", "/health")  # and the page's files: they hold nothing
_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


class Gate:
    """Around the app.

    Args:
        app: behind the gate.
        keys: one of them opens it; empty: it is open.
        limits: of the body, and of the time that it may take to come.
        answers: counts them by status.
    """

    def __init__(self, app: ASGIApp, *, keys: Sequence[str], limits: Limits, answers: Counter) -> None:
        self._app, self._keys, self._limits, self._answers = app, [key.encode() for key in keys], limits, answers

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return await self._app(scope, receive, send)
        headers, began = Headers(scope=scope), time.perf_counter()
        given = headers.get("x-request-id", "")
        found: dict[str, Any] = {"request_id": given if _ID.fullmatch(given) else uuid4().hex}
        scope.setdefault("state", {})["log"] = found

        async def answer(message: Message) -> None:
            if message["type"] == "http.response.start":
                found["status"] = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = found["request_id"]
            await send(message)

        try:
            try:
                self._check(scope["path"], headers)
            except ApiError as error:
                return await error.response()(scope, receive, answer)
            try:
                await self._app(scope, _Body(receive, self._limits), answer)
            except Exception as error:
                failure(error, found)
                if "status" in found:  # too late to say so
                    raise
                await api_error(error).response()(scope, receive, answer)
        finally:
            self._answers.labels(str(found.get("status", 499))).inc()
            log(
                "request", method=scope["method"], path=scope["path"][:200],
                seconds=round(time.perf_counter() - began, 4), **found,
            )  # fmt: skip

    def _check(self, path: str, headers: Headers) -> None:
        if self._keys and path not in _OPEN and not path.startswith("/page/"):
            kind, _, key = headers.get("authorization", "").partition(" ")
            given = key.strip().encode("latin-1")  # the bytes that came
            fits = [hmac.compare_digest(given, one) for one in self._keys]  # all, so that the time tells nothing
            if kind.lower() != "bearer" or not any(fits):
                raise ApiError(
                    401, "Incorrect API key: send it as 'Authorization: Bearer KEY'", code="invalid_api_key",
                    headers={"WWW-Authenticate": "Bearer"},
                )  # fmt: skip
        length = headers.get("content-length", "")
        if length.isdecimal() and int(length[:20]) > self._limits.max_body:
            raise _too_large(self._limits.max_body)


class _Body:
    """Receives a body of limited length, in limited time: a client may send one without saying how long it is."""

    def __init__(self, receive: Receive, limits: Limits) -> None:
        self._receive, self._limits, self._size = receive, limits, 0
        self._until: float | None = asyncio.get_running_loop().time() + limits.max_seconds

    async def __call__(self) -> Message:
        try:
            async with asyncio.timeout_at(self._until):
                message = await self._receive()
        except TimeoutError:
            raise ApiError(408, f"the body had not come after {self._limits.max_seconds:g} seconds") from None
        self._size += len(message.get("body", b""))
        if self._size > self._limits.max_body:
            raise _too_large(self._limits.max_body)
        if not message.get("more_body"):
            self._until = None
        return message


def _too_large(most: int) -> ApiError:
    return ApiError(413, f"the body is larger than {most} bytes: send less", code="request_too_large")
