"""The ingress before replicas that are not there, and a replica without Ray: who asks whom, and what is lost."""

import asyncio
import json

import httpx
import pytest
from live_server import BODY, CHAT, NAME, PATH, plain_decoder, rows_in_use, shared_decoder, text_of
from ray.exceptions import ActorDiedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from radar.serve import replica as replica_module
from radar.serve.conversation import conversation
from radar.serve.ingress import make_ingress
from radar.serve.models import ServedModel
from radar.serve.replica import ABORT, FOUND, Replica
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


@pytest.fixture(scope="module", autouse=True)
def runner():
    yield
    RUNNER.close()


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
        return self

    async def results_async(self, *, timeout_s, return_exceptions):
        if isinstance(self._said, Exception):
            raise self._said
        return list(self._said)


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


@pytest.mark.parametrize(
    "died", [[DEAD], [[START], DEAD], [[EVENTS], DEAD]], ids=["at once", "when it began", "when a stream began"]
)
def test_another_replica_takes_what_has_not_begun(died):
    handle = Handle(died, GOOD)
    answer = ask(handle)
    assert (answer.status_code, answer.json()) == (200, {"a": 1})
    assert handle.places == [conversation(json.dumps(BODY).encode())] * 2
    assert handle.asked[0] == handle.asked[1]


def test_what_has_begun_ends_with_an_error():
    answer = ask(Handle([[EVENTS, PART], DEAD]))
    first, last, rest = answer.text.split("\n\n")
    assert (answer.status_code, first, rest) == (200, 'data: {"a": 1}', "")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert error["type"] == "overloaded_error"
    assert "has died" in error["message"]


@pytest.mark.parametrize("begin", [[START, WHOLE], [EVENTS, PART, DONE]])
def test_an_answer_that_is_whole_stays_whole(begin):
    answer = ask(Handle([begin, DEAD]))
    assert answer.status_code == 200
    assert answer.text == "".join(one["body"].decode() for one in begin[1:])


def test_a_request_that_brings_replicas_down_is_given_up():
    handle = Handle([DEAD], [DEAD], [DEAD], GOOD)
    answer = ask(handle)
    assert answer.status_code == 503
    assert answer.json()["error"]["type"] == "overloaded_error"
    assert len(handle.asked) == 3


def test_a_replica_that_is_full_is_not_the_last_word():
    handle = Handle([[FULL, WHOLE]], GOOD)
    assert ask(handle).status_code == 200
    assert handle.places[0] != handle.places[1]
    assert handle.answers[0].cancelled
    answer = ask(Handle(*[[[FULL, WHOLE], [LOG]]] * 3))
    assert (answer.status_code, answer.headers["retry-after"], answer.json()) == (429, "7", {"a": 1})


@pytest.mark.parametrize(
    ("error", "status", "kind"),
    [
        (BackPressureError(num_queued_requests=9, max_queued_requests=9), 429, "rate_limit_error"),
        (DeploymentUnavailableError("x"), 503, "overloaded_error"),
        (RuntimeError("a secret"), 500, "server_error"),
    ],
)
def test_what_ray_refuses_has_openais_shape(error, status, kind):
    answer = ask(Handle([error]))
    assert (answer.status_code, answer.json()["error"]["type"]) == (status, kind)
    assert status == 500 or 1 <= int(answer.headers["retry-after"]) <= 60
    assert "secret" not in answer.text


def test_keys_and_sizes_are_looked_at_first():
    handle = Handle(GOOD)
    assert ask(handle, keys=["k"]).status_code == 401
    assert ask(handle, limits=Limits(max_body=10)).status_code == 413
    assert ask(handle, path="/v1/nothing").status_code == 404
    assert ask(handle, method="GET").status_code == 405
    assert handle.asked == []
    given = {"authorization": "Bearer k", "x-request-id": "mine"}
    answer = ask(handle, keys=["k"], headers=given)
    assert (answer.status_code, answer.headers.get_list("x-request-id")) == (200, ["mine"])
    headers = dict(handle.asked[0][0]["headers"])
    assert headers[b"x-request-id"] == b"mine"
    assert b"authorization" not in headers


def test_time_and_the_end_of_the_server_are_told():
    """Before an answer has begun by its status, then by its last event."""
    shut = {"state": lambda admission: admission.stopping.set()}
    late = {"limits": Limits(max_seconds=0.1)}
    for handle, options, status, said in (
        (Handle([HANGS]), late, 504, "0.1 seconds"),
        (Handle([HANGS]), shut, 503, "shut down"),
        (Handle([[EVENTS, PART], HANGS]), late, 200, "0.1 seconds"),
    ):
        answer = ask(handle, **options)
        assert answer.status_code == status
        error = json.loads(answer.text.strip().split("\n\n")[-1].removeprefix("data: "))["error"]
        assert said in error["message"]
        assert [one.cancelled for one in handle.answers] in ([], [True])


def test_a_client_that_leaves_is_told_to_the_replica():
    handle = Handle([[EVENTS, PART], HANGS])
    app = make_ingress(handle, limits=Limits(), keys=(), rows=4)
    sent = asyncio.Event()

    async def work():
        asked = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}])

        async def receive():
            if (message := next(asked, None)) is None:
                await sent.wait()
            return message or {"type": "http.disconnect"}

        async def send(message):
            if message["type"] == "http.response.body":
                sent.set()

        headers = [(b"content-type", b"application/json")]
        scope = {"type": "http", "method": "POST", "path": PATH, "headers": headers, "query_string": b""}
        await asyncio.wait_for(app(scope, receive, send), 30)

    RUNNER.run(work())
    assert handle.answers[0].cancelled
    assert app.state.admission.answers == 0


def test_an_answer_that_was_given_up_drops_the_connection():
    dropped = []

    async def work(app):
        messages = iter([{"type": "http.request", "body": b"{}"}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        async def send(message):
            pass

        scope = {
            "type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b"",
            "state": {"abort": lambda: dropped.append(1)},
        }  # fmt: skip
        await app(scope, receive, send)

    RUNNER.run(work(make_ingress(Handle([[EVENTS, PART, {"type": ABORT}]]), limits=Limits(), keys=(), rows=4)))
    assert dropped == [1]


def test_health_and_models_are_of_those_that_answer():
    say = {"method": "GET", "path": "/health"}
    assert ask(Handle(said=[True, DEAD]), **say).json() == {"status": "ok", "replicas": 1}
    for nobody in ([DEAD], [], DeploymentUnavailableError("x"), TimeoutError()):
        answer = ask(Handle(said=nobody), **say)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
    assert ask(Handle(said=[True]), **say, state=lambda one: setattr(one, "is_closed", True)).status_code == 503
    answer = ask(Handle(said=[DEAD, [START, WHOLE, LOG]]), method="GET", path="/v1/models")
    assert (answer.status_code, answer.json()) == (200, {"a": 1})


class Local:
    """The handle of one replica in this process."""

    def __init__(self, replica):
        self._replica, self._tasks = replica, []

    def options(self, **_):
        return self

    def remote(self, scope, body):
        found, tasks = self._replica.answer(scope, body), self._tasks

        class Stream:
            def __aiter__(self):
                return found

            def cancel(self):
                tasks.append(asyncio.ensure_future(found.aclose()))

        return Stream()

    def broadcast(self, method, *arguments):
        call = getattr(self._replica, method)(*arguments)

        class Said:
            async def results_async(self, **_):
                return [await call]

        return Said()


@pytest.fixture
def local(monkeypatch):
    monkeypatch.setattr(replica_module, "only_failures", lambda: None)  # it is of this process
    return Local(Replica(lambda options: [ServedModel(options["name"], shared_decoder())], {"name": NAME}, Limits()))


def test_a_replica_is_the_server(local):
    own = plain_decoder().generate(CHAT, max_new_tokens=12).text
    for stream in (False, True):
        answer = ask(local, body=BODY | {"stream": stream})
        assert text_of(answer) == own
    assert ask(local, body=BODY | {"n": 0}).json()["error"]["param"] == "n"
    assert ask(local, body=BODY | {"model": "x"}).json()["error"]["code"] == "model_not_found"
    assert ask(local, method="GET", path="/v1/models").json()["data"][0]["id"] == NAME
    assert f"{PATH}" in ask(local, method="GET", path="/openapi.json").json()["paths"]
    text = ask(local, method="GET", path="/metrics").text
    assert f'radar_generations_total{{model_name="{NAME}",replica="{local._replica.name}"}}' in text
    assert "radar_http_requests_total{" not in text  # the ingress's own, of which there was none before


def test_a_call_that_is_left_frees_its_row(local):
    async def work():
        body = json.dumps(BODY | {"stream": True, "max_tokens": 200, "min_tokens": 200}).encode()
        headers = [(b"content-type", b"application/json")]
        scope = {"method": "POST", "path": PATH, "headers": headers, "query_string": b""}
        answer = local._replica.answer(scope, body)
        before = shared_decoder().metrics.num_tokens
        while b"content" not in (await anext(answer))[-1].get("body", b""):
            pass
        assert rows_in_use(shared_decoder()) == 1
        await answer.aclose()
        assert local._replica._app.state.admission.count == 0
        for _ in range(2000):
            if rows_in_use(shared_decoder()) == 0:
                assert shared_decoder().metrics.num_tokens - before < 200
                return
            await asyncio.sleep(0.005)
        raise AssertionError("its row is held")

    RUNNER.run(work())


def test_conversations():
    def name(**fields):
        return conversation(json.dumps(fields).encode())

    def said(*texts):
        roles = ("system", "user", "assistant", "user")
        return [{"role": role, "content": text} for role, text in zip(roles, texts, strict=False)]

    first = name(model="m", messages=said("S", "U"))
    assert first is not None
    assert name(model="m", messages=said("S", "U", "A", "U2"), seed=1) == first
    assert name(model="m", messages=said("S", "V", "A", "U2")) != first
    assert name(model="n", messages=said("S", "U")) != first
    assert name(model="m", messages=[{"role": "assistant", "content": "x"}, 1]) is not None
    text = "x" * 256
    assert name(model="m", prompt=text + "y") == name(model="m", prompt=text + "z", stream=True) != name(prompt="x")
    assert name(prompt=[1] * 64 + [2]) == name(prompt=[[1] * 64 + [3], [4]]) != name(prompt=[2])
    assert name(prompt=["a", "b"]) == name(prompt="a")
    assert name(prompt="a", prompt_cache_key="k") == name(prompt="b", prompt_cache_key="k") != name(prompt="b")
    for nothing in (b"", b"{", b"[1]", b"\xff", b"[" * 100_000, b'{"prompt": 1}', b'{"prompt": []}', b'{"model": "m"}'):
        assert conversation(nothing) in (None, name(prompt=[]))
    assert conversation(b'{"prompt": "\\ud800"}') is not None
