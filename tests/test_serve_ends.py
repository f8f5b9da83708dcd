"""Texts that do not end well: the time is over, the server ends, or something of ours breaks. Nothing hangs."""

import json
import logging
import sys
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from live_server import (
    BODY,
    CHAT,
    NAME,
    PATH,
    Held,
    held,
    live,
    plain_decoder,
    request,
    shared_decoder,
    text_of,
    wait_until,
    web_of,
)  # fmt: skip

from radar.serve.logs import CONFIG
from radar.serve.settings import Limits


@pytest.mark.parametrize("stream", [False, True])
def test_a_text_that_takes_too_long_is_ended(stream):
    shared_decoder().encode(CHAT)  # the template is compiled: a stream is begun within its time
    with held(limits=Limits(max_seconds=5.0)) as (server, _), web_of(server) as web:
        answer = web.post(PATH, json=BODY | {"stream": stream})
        if stream:
            assert answer.status_code == 200
            error = json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]
        else:
            assert answer.status_code == 504
            assert answer.headers["x-should-retry"] == "false"
            error = answer.json()["error"]
        assert error["type"] == "timeout_error"
        assert "5 seconds" in error["message"]
        wait_until(lambda: server.admission.count == 0)


def test_shutdown_lets_texts_end():
    own = plain_decoder().generate(CHAT, max_new_tokens=12).text
    with held() as (server, decoder), ThreadPoolExecutor(2) as pool, httpx.Client(timeout=60) as web:
        asked = [
            pool.submit(httpx.post, server.url + PATH, json=BODY | {"stream": k}, timeout=60) for k in (False, True)
        ]
        assert decoder.reached.wait(60)
        wait_until(lambda: server.admission.count == 2)
        server.server.end()
        wait_until(lambda: server.admission.is_closed)
        for answer in (web.post(server.url + PATH, json=BODY), web.get(f"{server.url}/health")):
            assert answer.status_code == 503
            assert answer.json()["error"]["type"] == "overloaded_error"
        decoder.opened.set()
        assert [text_of(one.result()) for one in asked] == [own, own]
        assert server.end()


def test_python_is_set_for_the_engine_while_a_server_runs():
    before = sys.getswitchinterval()
    with live({NAME: shared_decoder()}):
        assert sys.getswitchinterval() < 0.001
    assert sys.getswitchinterval() == before


def test_shutdown_ends_what_does_not_end():
    """The engine hangs, and a client does not read."""
    limits = Limits(shutdown_seconds=0.2)
    with held(limits=limits) as (server, decoder), ThreadPoolExecutor(2) as pool:
        asked = [
            pool.submit(httpx.post, server.url + PATH, json=BODY | {"stream": k}, timeout=60) for k in (False, True)
        ]
        assert decoder.reached.wait(60)
        wait_until(lambda: server.admission.count == 2)
        with request(server, BODY | {"stream": True}):
            wait_until(lambda: server.admission.count == 3)
            assert server.end()
        whole, streamed = (one.result() for one in asked)
        assert whole.status_code == 503
        error = json.loads(streamed.text.split("\n\n")[-2].removeprefix("data: "))["error"]
        assert "shut down before the text had ended" in error["message"]


def test_a_step_that_hangs_keeps_no_server():
    """A decoder of one row takes its steps in threads of the event loop."""
    decoder = Held(plain_decoder())
    try:
        with ThreadPoolExecutor(1) as pool:
            with live({NAME: decoder}, limits=Limits(shutdown_seconds=0.2)) as server:
                asked = pool.submit(httpx.post, server.url + PATH, json=BODY, timeout=60)
                assert decoder.reached.wait(60)
                assert server.end(30)
            assert asked.result().status_code == 503
    finally:
        decoder.opened.set()


class Breaks:
    """A decoder that fails at its third token, or at once."""

    def __init__(self, decoder, *, at_once):
        self._decoder, self._at_once = decoder, at_once

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def rounds(self, prompt, **options):
        def fail(ids, scores):
            if ids.shape[1] > len(prompt) + 2:
                raise RuntimeError("a secret")
            return False

        if self._at_once:
            raise RuntimeError("a secret")
        return self._decoder.rounds(prompt, **options, stopping_criteria=[fail])


@pytest.mark.parametrize("at_once", [False, True])
@pytest.mark.parametrize("stream", [False, True])
def test_a_fault_of_ours_is_told_as_one(caplog, stream, at_once):
    models = {"breaks": Breaks(shared_decoder(), at_once=at_once), NAME: shared_decoder()}
    with live(models) as server, web_of(server) as web:
        answer = web.post(PATH, json=BODY | {"model": "breaks", "stream": stream})
        if stream and not at_once:
            error = json.loads(answer.text.split("\n\n")[-2].removeprefix("data: "))["error"]
        else:
            assert answer.status_code == 500
            error = answer.json()["error"]
        assert error["type"] == "server_error"
        assert "secret" not in answer.text
        own = answer.headers["x-request-id"]
        (told,) = [one.fields for one in caplog.records if one.getMessage() == "a request failed"]
        assert told["request_id"] == own
        assert "a secret" in told["traceback"]
        assert text_of(web.post(PATH, json=BODY)) == plain_decoder().generate(CHAT, max_new_tokens=12).text


def test_the_log_holds_no_word_of_a_client(caplog):
    caplog.set_level(logging.INFO, "radar.serve")
    with live({NAME: shared_decoder()}) as server, web_of(server) as web:
        assert web.post(PATH, json=BODY | {"chat_template_kwargs": {"max_length": "secret"}}).status_code == 400
    (line,) = [one.fields for one in caplog.records if one.getMessage() == "request"]
    assert (line["status"], line["ended"]) == (400, "refused")
    assert {"py.warnings", "transformers", "asyncio", "uvicorn"} <= CONFIG["loggers"].keys()
