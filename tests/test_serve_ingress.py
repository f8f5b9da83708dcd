"""The ingress before replicas that are not there: who asks whom, and what is lost."""

import asyncio
import json

import httpx
import pytest
from fake_replicas import DEAD, DONE, EVENTS, FULL, GOOD, HANGS, LOG, PART, RUNNER, START, WHOLE, Handle, ask
from live_server import BODY, PATH
from ray.exceptions import NodeDiedError, OutOfMemoryError, WorkerCrashedError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError

from radar.serve import ingress as ingress_module
from radar.serve.conversation import conversation
from radar.serve.ingress import make_ingress
from radar.serve.settings import Limits

FULL_UP = BackPressureError(num_queued_requests=9, max_queued_requests=9)


DEATHS = [DEAD, OutOfMemoryError("x"), NodeDiedError("x"), WorkerCrashedError()]


@pytest.mark.parametrize("death", DEATHS, ids=lambda death: type(death).__name__)
def test_a_replica_may_die_of_anything(death):
    assert ask(Handle([death], [[START], death], GOOD)).status_code == 200
    assert ask(Handle([[START, WHOLE], death])).status_code == 200
    assert "has died" in ask(Handle([[EVENTS, PART], death])).text
    assert ask(Handle(*[[death]] * 3)).status_code == 503


@pytest.mark.parametrize(
    "died", [[DEAD], [[START], DEAD], [[EVENTS], DEAD]], ids=["at once", "when it began", "when a stream began"]
)
def test_another_replica_takes_what_has_not_begun(died):
    handle = Handle(died, GOOD)
    answer = ask(handle)
    assert (answer.status_code, answer.json()) == (200, {"a": 1})
    assert handle.places == [conversation(json.dumps(BODY).encode())] * 2
    assert handle.asked[0] == handle.asked[1]


@pytest.mark.parametrize("refusal", [FULL_UP, DeploymentUnavailableError("x")])
def test_what_was_taken_in_is_not_refused_behind_that(refusal):
    """The replica that had it has died, and those that are left are full."""
    handle = Handle([DEAD], [refusal], [refusal], GOOD)
    assert ask(handle).status_code == 200
    assert len(set(handle.places)) == 1
    assert ask(Handle([DEAD], *[[[FULL, WHOLE]]] * 4, GOOD)).status_code == 200


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
    assert (answer.status_code, answer.headers["x-should-retry"]) == (503, "false")
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
        (FULL_UP, 429, "rate_limit_error"),
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


def test_an_answer_without_events_drops_the_connection():
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

    RUNNER.run(work(make_ingress(Handle([[START, PART], DEAD]), limits=Limits(), keys=(), rows=4)))
    assert dropped == [1]


def test_rows_and_those_that_wait_are_taken_in():
    """4 rows: so many and `max_waiting` beside them, before any replica is asked."""
    for waits in (0, 2):
        handle = Handle(*[[HANGS]] * 10)
        app = make_ingress(handle, limits=Limits(max_waiting=waits), keys=(), rows=4)

        async def work(app=app, handle=handle, taken=4 + waits):
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://x") as web:
                tasks = [asyncio.ensure_future(web.post(PATH, json=BODY)) for _ in range(10)]
                left = set(tasks)
                while len(left) > taken:
                    _, left = await asyncio.wait(left, return_when=asyncio.FIRST_COMPLETED)
                app.state.admission.stopping.set()
                found = [answer.status_code for answer in await asyncio.gather(*tasks)]
                return sorted(found), len(handle.asked)

        assert RUNNER.run(asyncio.wait_for(work(), 30)) == ([429] * (6 - waits) + [503] * (4 + waits), 4 + waits)


def test_who_reads_slowly_keeps_no_place():
    app = make_ingress(Handle([[EVENTS, PART], [DONE, LOG]]), limits=Limits(), keys=(), rows=4)
    admission, reads = app.state.admission, asyncio.Event()

    async def work():
        messages = iter([{"type": "http.request", "body": json.dumps(BODY).encode()}])

        async def receive():
            return next(messages, None) or await asyncio.Event().wait()

        async def send(message):
            await reads.wait()

        scope = {"type": "http", "method": "POST", "path": PATH, "headers": [], "query_string": b""}
        task = asyncio.ensure_future(app(scope, receive, send))
        while not admission.answers or admission.count:
            await asyncio.sleep(0.005)
        reads.set()
        await task

    RUNNER.run(asyncio.wait_for(work(), 60))
    assert (admission.count, admission.answers) == (0, 0)


def test_a_replica_that_hangs_is_its_own_matter(monkeypatch):
    monkeypatch.setattr(ingress_module, "PATIENCE", 0.2)
    say = {"method": "GET", "path": "/health"}
    assert ask(Handle(said=[HANGS, True, DEAD]), **say).json() == {"status": "ok", "replicas": 1}
    assert ask(Handle(said=[HANGS]), **say).status_code == 503


def test_health_and_models_are_of_those_that_answer():
    say = {"method": "GET", "path": "/health"}
    assert ask(Handle(said=[True, DEAD]), **say).json() == {"status": "ok", "replicas": 1}
    for nobody in ([DEAD], [], DeploymentUnavailableError("x"), TimeoutError()):
        answer = ask(Handle(said=nobody), **say)
        assert (answer.status_code, answer.json()["error"]["type"]) == (503, "overloaded_error")
    assert ask(Handle(said=[True]), **say, state=lambda one: setattr(one, "is_closed", True)).status_code == 503
    answer = ask(Handle(said=[DEAD, [START, WHOLE, LOG]]), method="GET", path="/v1/models")
    assert (answer.status_code, answer.json()) == (200, {"a": 1})
