"""What stands before replicas: it looks at keys and sizes, passes texts on, and speaks for all of them."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI, Request
from ray.serve.exceptions import DeploymentUnavailableError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import Response

from radar.serve.admission import Admission
from radar.serve.conversation import conversation
from radar.serve.errors import ApiError, add_handlers
from radar.serve.forwarded import Forwarded, asked
from radar.serve.gate import Gate
from radar.serve.jsontext import dumps
from radar.serve.metrics_of_all import MetricsOfAll
from radar.serve.page_files import page_file
from radar.serve.settings import Limits

__all__ = ["make_ingress"]

PATIENCE = 5.0  # seconds for replicas to say something of themselves


def make_ingress(replicas: Any, *, limits: Limits, keys: Sequence[str], rows: int) -> FastAPI:
    """The app. `app.state.admission` knows what is under way.

    Args:
        replicas: Ray Serve's handle of `Replica`s.
        limits: of requests.
        keys: of the API; empty: it is open.
        rows: texts that the replicas decode at once, as many of them as there may be.
    """
    admission, metrics = Admission(rows, limits.max_waiting), MetricsOfAll()
    app = FastAPI(title="RADAR", docs_url=None, redoc_url=None, openapi_url=None)
    app.state.admission = admission
    add_handlers(app)
    app.add_middleware(Gate, keys=keys, limits=limits, answers=metrics.http)

    async def all_say(method: str, *arguments: Any) -> list[Any]:
        """What replicas answer, those that do. It goes by the queues: they may be full. ApiError, 503: none does."""
        try:
            said = replicas.broadcast(method, *arguments)
            # in a thread: there each replica has its time, while `results_async` gives up all if one hangs
            found = await asyncio.to_thread(said.results, timeout_s=PATIENCE, return_exceptions=True)
        except (DeploymentUnavailableError, TimeoutError):
            found = []
        if good := [one for one in found if not isinstance(one, BaseException)]:
            return good
        raise ApiError(503, "no replica answers: try again later", headers={"Retry-After": "5"})

    @app.post("/v1/chat/completions")
    @app.post("/v1/completions")
    async def text(request: Request) -> Response:
        try:
            body = await request.body()
        except ClientDisconnect:
            raise HTTPException(400, "the body has not come to its end") from None
        return Forwarded(replicas, request.scope, body, conversation(body), admission, limits.max_seconds)

    @app.get("/v1/models")
    @app.get("/v1/models/{name:path}")
    @app.get("/openapi.json")
    async def of_one(request: Request) -> Response:
        (start, *rest), *_ = await all_say("whole", asked(request.scope))
        body = b"".join(message.get("body", b"") for message in rest)
        kind = dict(start["headers"])[b"content-type"].decode()
        return Response(body, start["status"], media_type=kind)

    @app.get("/health")
    async def health() -> Response:
        admission.check_open()
        count = len(await all_say("alive"))
        return Response(dumps({"status": "ok", "replicas": count}), media_type="application/json")

    @app.get("/metrics")
    async def exposition() -> Response:
        found = await all_say("metrics")
        text = await asyncio.to_thread(metrics.render, found)
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    @app.get("/")
    async def index() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}")
    async def page(name: str) -> Response:
        return page_file(name)

    return app
