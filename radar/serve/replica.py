"""A replica: the app of one server without its sockets, in a process of Ray."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import AsyncGenerator, Callable, Mapping, Sequence
from typing import Any

from prometheus_client import Metric
from starlette.types import Message

from radar.serve.app import make_app
from radar.serve.logs import to_stderr
from radar.serve.models import ServedModel
from radar.serve.settings import Limits
from radar.tools.interpreter import set_for_engine

__all__ = ["FOUND", "Replica"]

FOUND = "radar.found"  # a message beside those of ASGI: fields of the log


class Replica:
    """Answers what an ingress passes on (`radar.serve.ingress`).

    Args:
        make_models: makes the decoders, in this process.
        options: what it is called with.
        limits: of requests.
    """

    def __init__(
        self, make_models: Callable[[Mapping[str, Any]], Sequence[ServedModel]], options: Mapping[str, Any],
        limits: Limits,
    ) -> None:  # fmt: skip
        to_stderr(logging.WARNING)  # the ingress writes a line a request
        self.name = f"{socket.gethostname()}:{os.getpid()}"
        self._app = make_app(make_models(options), limits=limits)
        set_for_engine()

    async def answer(self, scope: dict[str, Any], body: bytes) -> AsyncGenerator[list[Message], None]:
        """The messages of the app's answer as they come, those that wait together in one list, and at last one of
        kind `FOUND`. Left early, it ends the texts.

        Args:
            scope: of the request, as ASGI has it.
            body: all of it.
        """
        made: list[Message] = []
        asked, some = iter([{"type": "http.request", "body": body}]), asyncio.Event()

        async def receive() -> Message:
            return next(asked, None) or await asyncio.Future[Message]()  # who leaves, cancels

        async def send(message: Message) -> None:
            made.append(message)
            some.set()

        state: dict[str, Any] = {}  # nothing drops a connection: `send` above neither waits nor fails
        work = asyncio.ensure_future(self._app({"type": "http", "state": state, **scope}, receive, send))
        work.add_done_callback(lambda _: some.set())
        try:
            while not work.done():
                await some.wait()
                some.clear()
                if made:
                    batch, made[:] = list(made), []
                    yield batch
            work.result()
            yield [*made, {"type": FOUND, "fields": state["log"] | {"replica": self.name}}]
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def whole(self, scope: dict[str, Any]) -> list[Message]:
        """The same for a request without a body, when it has ended."""
        return [message async for batch in self.answer(scope, b"") for message in batch]

    async def metrics(self) -> tuple[str, list[Metric]]:
        """Its name and its figures."""
        return self.name, list(self._app.state.metrics.registry.collect())

    async def alive(self) -> bool:
        """Whether it answers."""
        return True
