"""The routes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from fastapi import FastAPI
from starlette.responses import PlainTextResponse, Response

from radar.errors import UsageError
from radar.serve.admission import Admission
from radar.serve.answer import Answer
from radar.serve.chat import ChatJob
from radar.serve.completions import CompletionJob
from radar.serve.errors import add_handlers
from radar.serve.gate import Gate
from radar.serve.jsontext import dumps
from radar.serve.metrics import ServerMetrics
from radar.serve.models import ServedModel, ServedModels
from radar.serve.openai import ChatRequest, CompletionRequest
from radar.serve.page_files import page_file
from radar.serve.settings import Limits

__all__ = ["make_app"]

_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "null"]},
            },
        }
    },
}
_ABOUT = {
    400: "what was asked for cannot be done", 401: "no or a wrong key", 404: "no such model",
    408: "the body came too slowly", 413: "too large", 429: "too many texts wait", 503: "the server is shutting down",
    504: "it took too long",
}  # fmt: skip
_ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": about, "content": {"application/json": {"schema": _ERROR}}}
    for status, about in _ABOUT.items()
}
_TEXT: dict[int | str, dict[str, Any]] = {
    **_ERRORS,
    200: {
        "description": "an object, or with stream=true server-sent events",
        "content": {"application/json": {"schema": {"type": "object"}}, "text/event-stream": {}},
    },
}


def make_app(models: Sequence[ServedModel], *, limits: Limits | None = None, keys: Sequence[str] = ()) -> FastAPI:
    """The app. `app.state.admission` knows what is under way, `app.state.metrics` what was.

    Args:
        models: one or more; the first says how many rows there are.
        limits: of requests.
        keys: of the API; empty: it is open.

    Raises:
        UsageError: for a decoder without a tokenizer.
    """
    limits, served = limits or Limits(), ServedModels(models)
    if any(model.decoder.tokenizer is None for model in models):
        raise UsageError("a server needs text: pass tokenizer= to the decoder")
    admission = Admission(served.first.decoder.max_batch_size, limits.max_waiting)
    metrics = ServerMetrics(served, admission)
    app = FastAPI(title="RADAR", docs_url=None, redoc_url=None)  # those pages load scripts of another site
    app.state.admission, app.state.metrics = admission, metrics
    add_handlers(app)
    app.add_middleware(Gate, keys=keys, limits=limits, answers=metrics.http)

    @app.post("/v1/chat/completions", responses=_TEXT)
    async def chat(body: ChatRequest) -> Response:
        return Answer(ChatJob(body, served.of(body.model), limits), admission, metrics)

    @app.post("/v1/completions", responses=_TEXT)
    async def completions(body: CompletionRequest) -> Response:
        return Answer(CompletionJob(body, served.of(body.model), limits), admission, metrics)

    @app.get("/v1/models", responses={401: _ERRORS[401]})
    async def models_list() -> Response:
        return _json({"object": "list", "data": [model.card() for model in served]})

    @app.get("/v1/models/{name:path}", responses={status: _ERRORS[status] for status in (400, 401, 404)})
    async def model(name: str) -> Response:
        return _json(served.of(name).card())

    @app.get("/health", responses={503: _ERRORS[503]})
    async def health() -> Response:
        admission.check_open()
        return _json({"status": "ok"})

    @app.get("/metrics", responses={401: _ERRORS[401]}, response_class=PlainTextResponse)
    async def exposition() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    _leave_out_422(app)

    @app.get("/", include_in_schema=False)
    async def index() -> Response:
        return page_file("index.html")

    @app.get("/page/{name}", include_in_schema=False)
    async def page(name: str) -> Response:
        return page_file(name)

    return app


def _leave_out_422(app: FastAPI) -> None:
    """FastAPI describes an answer that `add_handlers` never gives: what it refuses is a 400 here."""
    describe = app.openapi

    def openapi() -> dict[str, Any]:
        found = describe()
        for path in found["paths"].values():
            for operation in path.values():
                operation["responses"].pop("422", None)
        return found

    app.openapi = openapi  # type: ignore[method-assign]


def _json(value: Any) -> Response:
    return Response(dumps(value), media_type="application/json")
