"""What a server does under pressure: it refuses, and lets go of rows that nobody reads."""

import json
import socket
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest
from live_server import (
    BODY,
    CHAT,
    NAME,
    PATH,
    ROWS,
    Held,
    held,
    live,
    plain_decoder,
    request,
    request_bytes,
    rows_in_use,
    shared_decoder,
    slow_request,
    text_of,
    wait_until,
    web_of,
)  # fmt: skip

from radar.serve import ahead
from radar.serve.settings import Limits

TALKATIVE = {
    "model": NAME, "messages": CHAT, "max_tokens": 60, "stream": True, "logprobs": True, "top_logprobs": 20,
    "logit_bias": {"3": -100},
}  # fmt: skip
ROUND = 3  # tokens at most: two draft calls, and the target's own


@pytest.mark.parametrize("how", ["close", "half-close"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_frees_its_row_within_a_round(stream, how):
    with held() as (server, decoder):
        connection = request(server, BODY | {"stream": stream, "max_tokens": 200})
        assert decoder.reached.wait(60)  # the engine is in the middle of a round
        asked = decoder.asked
        if how == "close":
            connection.close()
        else:
            connection.shutdown(socket.SHUT_WR)
        wait_until(lambda: server.admission.count == 0)
        decoder.opened.set()
        wait_until(lambda: rows_in_use(decoder) == 0)
        assert decoder.asked - asked <= ROUND
        connection.close()
        with web_of(server) as web:
            assert text_of(web.post(PATH, json=BODY)) == plain_decoder().generate(CHAT, max_new_tokens=12).text


class Opens(Held):
    """A decoder that takes its time to take a text in."""

    def rounds(self, prompt, **options):
        self.reached.set()
        assert self.opened.wait(60)
        self.asked += 1
        return self._decoder.rounds(prompt, **options)


def test_a_client_that_leaves_while_its_text_is_taken_in_leaves_nothing():
    decoder = Opens(shared_decoder())
    before = decoder.metrics.num_tokens
    with live({NAME: decoder}) as server:
        connection = request(server, BODY | {"max_tokens": 200})
        assert decoder.reached.wait(60)
        connection.close()
        wait_until(lambda: server.admission.count == 0)
        decoder.opened.set()
        wait_until(lambda: decoder.asked == 1)
        with web_of(server) as web:
            assert web.post(PATH, json=BODY).status_code == 200
        wait_until(lambda: rows_in_use(decoder) == 0)
        assert decoder.metrics.num_tokens - before < 24, "it was decoded for nobody"  # its text has 27, the other 12


def test_a_full_server_says_so_and_loses_nothing():
    own = plain_decoder().generate(CHAT, max_new_tokens=12).text
    with (
        held(limits=Limits(max_waiting=2)) as (server, decoder),
        ThreadPoolExecutor(ROWS + 2) as pool,
        web_of(server) as web,
    ):
        asked = [pool.submit(web.post, PATH, json=BODY | {"stream": bool(k % 2)}) for k in range(ROWS + 2)]
        wait_until(lambda: server.admission.count == ROWS + 2)
        refused = web.post(PATH, json=BODY)
        assert refused.status_code == 429
        assert 1 <= int(refused.headers["retry-after"]) <= 60
        assert refused.json()["error"]["type"] == "rate_limit_error"
        assert "waiting 2.0" in web.get("/metrics").text
        assert web.get("/health").status_code == 200
        assert web.post(PATH, json=BODY | {"n": 7}).status_code == 400
        decoder.opened.set()
        assert [text_of(one.result()) for one in asked] == [own] * (ROWS + 2)
        assert web.post(PATH, json=BODY).status_code == 200


@pytest.mark.parametrize("make", [shared_decoder, plain_decoder])
def test_a_slow_reader_blocks_nobody(make):
    """Its texts are made to the end, whose places are free then; what waits for it is its tokens, and 64 kB or so."""
    decoder = make()
    with live({NAME: decoder}, limits=Limits(max_waiting=0), send_buffer=4096) as server:
        slow = slow_request(server, TALKATIVE | {"n": decoder.max_batch_size})
        wait_until(lambda: server.admission.answers == 1)
        wait_until(lambda: server.admission.count == 0)
        with web_of(server) as web:
            assert "running 0.0" in web.get("/metrics").text
            assert text_of(web.post(PATH, json=BODY)) == plain_decoder().generate(CHAT, max_new_tokens=12).text
        assert server.admission.answers == 1, "it has been read to the end: send more"
        parts = []
        while part := slow.recv(1 << 16):
            parts.append(part)
        assert b"".join(parts).endswith(b"data: [DONE]\n\n")
        wait_until(lambda: server.admission.answers == 0)
        slow.close()


def test_a_stream_that_waits_is_told_so(monkeypatch):
    monkeypatch.setattr(ahead, "QUIET", 0.01)
    body = BODY | {"stream": True}
    with held() as (server, decoder), web_of(server) as web, web.stream("POST", PATH, json=body) as answer:
        assert answer.headers["x-accel-buffering"] == "no"
        lines = answer.iter_lines()
        assert ": queued" in lines
        decoder.opened.set()
        assert "data: [DONE]" in lines


def test_who_does_not_read_at_all_is_dropped():
    with live({NAME: shared_decoder()}, limits=Limits(max_seconds=2), send_buffer=4096) as server:
        slow = slow_request(server, TALKATIVE)
        wait_until(lambda: server.admission.answers == 1)
        wait_until(lambda: server.admission.answers == 0)
        wait_until(lambda: not server.server.server_state.connections, seconds=30)
        slow.close()


@pytest.mark.parametrize("stream", [False, True])
def test_an_answer_that_is_not_begun_is_refused_as_one(stream):
    """The answer before it on the same connection is not read, so that it cannot begin."""
    with live({NAME: shared_decoder()}, send_buffer=4096) as server:
        slow = slow_request(server, TALKATIVE | {"stream": False, "n": ROWS}, "1.1")
        wait_until(lambda: server.admission.answers == 1)
        wait_until(lambda: server.admission.answers == 0)
        before = shared_decoder().metrics.num_generations
        slow.sendall(request_bytes(BODY | {"stream": stream}, "1.0"))
        wait_until(lambda: shared_decoder().metrics.num_generations > before and rows_in_use(shared_decoder()) == 0)
        server.server._loop.call_soon_threadsafe(server.admission.stopping.set)
        wait_until(lambda: server.admission.answers == 0)
        answer = b""
        while part := slow.recv(1 << 16):
            answer += part
        slow.close()
    assert b"HTTP/1.1 503 " in answer
    assert b"shut down before the text had ended" in answer


def test_a_body_that_does_not_come_is_not_waited_for():
    with live({NAME: shared_decoder()}, limits=Limits(max_seconds=0.3)) as server:
        with socket.create_connection(("127.0.0.1", server.port)) as connection:
            connection.sendall(f"POST {PATH} HTTP/1.1\r\nHost: x\r\nContent-Length: 99\r\n\r\n{{".encode())
            answer = b""
            while b"seconds" not in answer and (part := connection.recv(1 << 16)):
                answer += part
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"had not come after 0.3 seconds" in answer


def test_only_a_key_opens():
    with live({NAME: shared_decoder()}, keys=["first", "sécond"]) as server, web_of(server) as web:
        for given in (
            {},
            {"authorization": "Bearer no"},
            {"authorization": "Basic first"},
            {"authorization": "Bearer firs"},
            {"authorization": "Bearer"},
        ):
            for path in ("/v1/models", "/metrics", "/openapi.json", "/nothing"):
                refused = web.get(path, headers=given)
                assert refused.status_code == 401
                assert refused.json()["error"]["code"] == "invalid_api_key"
            assert web.post(PATH, json=BODY, headers=given).status_code == 401
        assert web.get("/health").status_code == web.get("/").status_code == web.get("/page/page.js").status_code == 200
        body = BODY | {"max_tokens": 4}
        assert web.post(PATH, json=body, headers={"authorization": "Bearer first"}).status_code == 200
        assert web.get("/v1/models", headers=[(b"authorization", "bearer sécond".encode())]).status_code == 200


def test_one_row_takes_text_after_text(monkeypatch):
    from radar import AutoregressiveDecoder

    one = AutoregressiveDecoder(shared_decoder().model, tokenizer=shared_decoder().tokenizer, max_length=128)
    own, admit, admitted = one.generate(CHAT, max_new_tokens=9).text, one.engine.admit, []
    monkeypatch.setattr(one.engine, "admit", lambda request: admitted.append(1) or admit(request))
    with live({NAME: one}) as server, ThreadPoolExecutor(4) as pool:
        asked = [
            pool.submit(httpx.post, server.url + PATH, json=BODY | {"max_tokens": 9, "n": 1 + k % 2}, timeout=60)
            for k in range(4)
        ]
        for answer in asked:
            assert {choice["message"]["content"] for choice in answer.result().json()["choices"]} == {own}
        assert len(admitted) == 6, "a prompt was read twice"


@pytest.mark.parametrize("said", [True, False])
def test_a_large_body_is_refused(said):
    limits = Limits(max_body=1000)
    with live({NAME: shared_decoder()}, limits=limits) as server, httpx.Client(timeout=60) as web:
        data = json.dumps(BODY | {"user": "x" * 2000}).encode()
        content = data if said else (data[place : place + 100] for place in range(0, len(data), 100))
        answer = web.post(server.url + PATH, content=content, headers={"content-type": "application/json"})
        assert answer.status_code == 413
        assert answer.json()["error"]["code"] == "request_too_large"


def test_a_limit_of_tokens_holds_for_all():
    with live({NAME: shared_decoder()}, limits=Limits(max_tokens=5)) as server, httpx.Client(timeout=60) as web:
        for asked in ({}, {"max_tokens": 40}, {"max_tokens": 4000}, {"min_tokens": 9, "max_tokens": 12}):
            body = {"model": NAME, "messages": CHAT, **asked}
            answer = web.post(server.url + PATH, json=body).json()
            assert answer["usage"]["completion_tokens"] == 5
            assert answer["choices"][0]["finish_reason"] == "length"


def test_connections_that_are_torn_leave_nothing():
    with live({NAME: shared_decoder()}) as server:
        for data in (
            b"",
            b"POST",
            b"POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n{",
            b"\x16\x03\x01\x02\x00",
            b"\r\n" * 99,
        ):
            with socket.create_connection(("127.0.0.1", server.port)) as connection:
                connection.sendall(data)
        begun = request(server, BODY)
        begun.close()  # before anything was opened
        wait_until(lambda: server.admission.count == 0)
        wait_until(lambda: rows_in_use(shared_decoder()) == 0)
        assert httpx.get(f"{server.url}/health").status_code == 200
