"""A replica in this process, without Ray, behind the ingress; and which requests go to one replica."""

import asyncio
import json

import pytest
from fake_replicas import RUNNER, ask
from live_server import BODY, CHAT, NAME, PATH, plain_decoder, rows_in_use, shared_decoder, text_of

from radar.serve import replica as replica_module
from radar.serve.conversation import conversation
from radar.serve.models import ServedModel
from radar.serve.replica import Replica
from radar.serve.settings import Limits


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
        call, loop = getattr(self._replica, method)(*arguments), asyncio.get_running_loop()

        class Said:
            def results(self, **_):
                return [asyncio.run_coroutine_threadsafe(call, loop).result()]

        return Said()


@pytest.fixture
def local(monkeypatch):
    monkeypatch.setattr(replica_module, "to_stderr", lambda level: None)  # it is of this process
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
