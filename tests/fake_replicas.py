"""Replicas that are scripts, and what an ingress before them answers."""

import asyncio
import json
import threading

import httpx
from live_server import BODY, PATH
from ray.exceptions import ActorDiedError, GetTimeoutError
from ray.serve.handle import DeploymentBroadcastResponse

from radar.serve.ingress import make_ingress
from radar.serve.replica import FOUND
from radar.serve.settings import Limits

START = {"type": "http.response.start", "status": 200, "headers": [(b"content-type", b"application/json")]}
EVENTS = START | {"headers": [(b"content-type", b"text/event-stream; charset=utf-8")]}
FULL = START | {"status": 429, "headers": [(b"content-type", b"application/json"), (b"retry-after", b"7")]}
WHOLE = {"type": "http.response.body", "body": b'{"a": 1}'}
PART = {"type": "http.response.body", "body": b'data: {"a": 1}\n\n', "more_body": True}
DONE = {"type": "http.response.body", "body": b"data: [DONE]\n\n"}
LOG = {"type": FOUND, "fields": {"completion_tokens": 3, "status": 200}}
DEAD, GOOD = ActorDiedError(), [[START, WHOLE], [LOG]]
HANGS = object()
RUNNER = asyncio.Runner()  # one loop: a replica has but one


class Answer:
    """What a handle gives for a call: lists of messages, in the end perhaps an error."""

    def __init__(self, script):
        self._script, self.cancelled = list(script), False
        self._refused = self._script[0] if isinstance(self._script[0], Exception) else None

    def __aiter__(self):
        return self

    async def __anext__(self):
        if not self._script:
            raise StopAsyncIteration
        step = self._script.pop(0)
        if step is HANGS:
            await asyncio.Event().wait()
        if isinstance(step, Exception):
            raise step
        return step

    def cancel(self):
        self.cancelled = True
        if self._refused is not None:
            raise self._refused


class Said:
    """What one replica says, as Ray waits for it."""

    def __init__(self, one):
        self._one = one

    def get(self, timeout_s):
        if self._one is HANGS:
            threading.Event().wait(timeout_s)
            raise GetTimeoutError
        if isinstance(self._one, Exception):
            raise self._one
        return self._one

    async def get_async(self):
        if self._one is HANGS:
            await asyncio.Event().wait()
        return self.get(0)


class Handle:
    """Answers by scripts, one a call, and knows what it was asked."""

    def __init__(self, *scripts, said=()):
        self._scripts, self._said = list(scripts), said
        self.places, self.asked, self.answers = [], [], []

    def options(self, *, method_name, stream, session_id):
        assert (method_name, stream) == ("answer", True)
        self.places.append(session_id)
        return self

    def remote(self, scope, body):
        self.asked.append((scope, body))
        self.answers.append(Answer(self._scripts.pop(0)))
        return self.answers[-1]

    def broadcast(self, method, *arguments):
        self.asked.append((method, *arguments))

        async def said():
            if isinstance(self._said, Exception):
                raise self._said
            return [Said(one) for one in self._said]

        return DeploymentBroadcastResponse(said(), None)  # Ray's own: how it waits is part of what is tested


def ask(handle, path=PATH, body=BODY, *, limits=None, keys=(), headers=None, method="POST", state=None):
    """The answer of an ingress with this handle."""
    app = make_ingress(handle, limits=limits or Limits(), keys=keys, rows=4)
    if state:
        state(app.state.admission)

    async def work():
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as web:
            content = None if method == "GET" else json.dumps(body).encode()
            return await web.request(
                method, path, content=content, headers={"content-type": "application/json"} | (headers or {})
            )

    return RUNNER.run(work())
