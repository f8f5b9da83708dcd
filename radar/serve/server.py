"""The server's process: it listens, and ends without losing what it has begun."""

from __future__ import annotations

import asyncio
import logging
import signal
import socket
from types import FrameType
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.protocols.http.h11_impl import H11Protocol

from radar.errors import UsageError
from radar.serve.logs import CONFIG, log
from radar.serve.settings import Limits
from radar.serve.threads import DaemonThreads
from radar.tools.interpreter import set_for_engine

__all__ = ["RadarServer", "bound_socket"]

GRACE = 3  # seconds for connections that are left, behind the texts


def bound_socket(host: str, port: int) -> socket.socket:
    """A socket that nobody else listens on. It listens before the model is loaded, to know at once whether it can;
    who connects meanwhile waits.

    Raises UsageError if it cannot.
    """
    try:
        kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        found = socket.socket(kind)
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        found.bind(address)
        found.listen()  # not before that is the port nobody else's
    except (OSError, OverflowError, UnicodeError) as error:
        raise UsageError(f"cannot listen on {host} port {port}: {error}; take another --host or --port") from error
    return found


class _Protocol(H11Protocol):
    """Lets an answer drop its connection: one that is closed stays until the client has read what was written."""

    def connection_made(self, transport: Any) -> None:
        """See `asyncio.Protocol`."""
        super().connection_made(transport)
        self.app_state = {**self.app_state, "abort": transport.abort}


class RadarServer(uvicorn.Server):
    """uvicorn, which on SIGTERM or Ctrl-C first refuses new texts by 503 and lets those under way end, as long as
    `limits.shutdown_seconds`; the rest gets an error as its last event. A second signal ends it at once.

    Args:
        app: from `make_app`.
        limits: of it.
        with_logs: whether this process's logs become lines of JSON.
    """

    def __init__(self, app: FastAPI, limits: Limits, *, with_logs: bool = True) -> None:
        if with_logs:
            logging.captureWarnings(True)
        super().__init__(
            uvicorn.Config(
                app,
                log_config=CONFIG if with_logs else None,
                access_log=False,
                timeout_graceful_shutdown=GRACE,
                server_header=False,
                http=_Protocol,
                loop="asyncio",  # the same one, whatever else is installed
                ws="none",
                lifespan="off",
            )
        )
        self._admission, self._limits = app.state.admission, limits
        self._ending: asyncio.Task[None] | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        self._loop = asyncio.get_running_loop()
        self._loop.set_default_executor(DaemonThreads())
        await super().startup(sockets)
        self._undo = set_for_engine()
        for one in sockets or ():
            host, port = one.getsockname()[:2]
            log("listening", url=f"http://{f'[{host}]' if ':' in host else host}:{port}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        try:
            await super().shutdown(sockets)
        finally:
            self._undo()

    def end(self) -> None:
        """Begin to end, from any thread."""
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(self._begin_to_end)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """See `uvicorn.Server`."""
        if self._admission.is_closed or self._loop is None:
            self.should_exit = self.force_exit = True
            return
        log("ending", signal=signal.Signals(sig).name, texts=self._admission.count)
        self.end()

    def _begin_to_end(self) -> None:
        self._admission.is_closed = True
        self._ending = self._ending or asyncio.ensure_future(self._end())

    async def _end(self) -> None:
        try:
            if not await self._admission.idle(self._limits.shutdown_seconds):
                self._admission.stopping.set()
                await self._admission.idle(GRACE)
        finally:
            self.should_exit = True
