"""A server of the embedded pair on a free port of this machine, in a thread."""

import contextlib
import functools
import json
import socket
import threading
import time

import httpx
import torch

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.serve.app import make_app
from radar.serve.models import ServedModel
from radar.serve.server import RadarServer, bound_socket
from radar.serve.settings import Limits

NAME, ROWS, LENGTH = "tiny", 4, 256
PATH, CHAT = "/v1/chat/completions", [{"role": "user", "content": "Add two numbers"}]
BODY = {"model": NAME, "messages": CHAT, "max_tokens": 12}
TREE = TreeConfig(total_tokens=8, max_calls=2, tree_top_k=4)


@functools.cache
def shared_decoder():
    """Of several rows; drafts in every round."""
    return RadarDecoder.from_pretrained(
        device="cpu", dtype=torch.float32, policy=FixedDepth(2), tree=TREE, fallback=False, max_batch_size=ROWS,
        max_length=LENGTH,
    )  # fmt: skip


@functools.cache
def plain_decoder(rows=1):
    """On the same model; with one row the reference that texts are compared with."""
    one = shared_decoder()
    return AutoregressiveDecoder(one.model, tokenizer=one.tokenizer, max_batch_size=rows, max_length=LENGTH)


class Held:
    """A decoder whose texts stop at their third token until the gate is opened, and count their tokens."""

    def __init__(self, decoder):
        self._decoder = decoder
        self.reached, self.opened, self.asked = threading.Event(), threading.Event(), 0

    def __getattr__(self, name):
        return getattr(self._decoder, name)

    def rounds(self, prompt, **options):
        return self._decoder.rounds(prompt, **options, stopping_criteria=[functools.partial(self._hold, len(prompt))])

    def _hold(self, begin, ids, scores):
        self.asked += 1
        if ids.shape[1] >= begin + 3 and not self.opened.is_set():
            self.reached.set()
            assert self.opened.wait(120)
        return False


class Live:
    """A running server.

    Attributes:
        url: of it, without a slash at the end.
        app, server: its parts.
    """

    def __init__(self, models, *, limits=None, keys=(), send_buffer=None):
        limits = limits or Limits()
        self.app = make_app([ServedModel(name, one) for name, one in models.items()], limits=limits, keys=keys)
        self.server = RadarServer(self.app, limits, with_logs=False)
        listener = bound_socket("127.0.0.1", 0)
        if send_buffer:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._thread = threading.Thread(target=self.server.run, args=([listener],), daemon=True)
        self._thread.start()
        wait_until(lambda: self.server.started)

    @property
    def admission(self):
        return self.app.state.admission

    def end(self, seconds=60):
        """Tell it to end; returns whether it has."""
        self.server.end()
        self._thread.join(seconds)
        return not self._thread.is_alive()


@contextlib.contextmanager
def live(models, **options):
    server = Live(models, **options)
    try:
        yield server
    finally:
        assert server.end()


def wait_until(condition, seconds=60):
    until = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < until, "it does not come true"
        time.sleep(0.005)


def rows_in_use(decoder):
    """Texts that the engine holds."""
    return len(decoder._maker._batch._texts)


@contextlib.contextmanager
def held(**options):
    """A server whose texts are held up, and its decoder."""
    decoder = Held(shared_decoder())
    with live({NAME: decoder}, **options) as server:
        try:
            yield server, decoder
        finally:
            decoder.opened.set()
    wait_until(lambda: rows_in_use(decoder) == 0)


def web_of(server):
    return httpx.Client(base_url=server.url, timeout=120)


def text_of(answer):
    """Of a chunked or a whole answer."""
    if not answer.text.startswith("data: "):
        return answer.json()["choices"][0]["message"]["content"]
    chunks = [json.loads(part.removeprefix("data: ")) for part in answer.text.split("\n\n")[:-2]]
    return "".join(chunk["choices"][0]["delta"].get("content") or "" for chunk in chunks)


def request(server, body):
    """A socket that has sent a request."""
    connection = socket.create_connection(("127.0.0.1", server.port))
    connection.sendall(request_bytes(body))
    return connection


def slow_request(server, body, version="1.0"):
    """A socket that has sent a request, and holds little of its answer."""
    connection = socket.socket()
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    connection.connect(("127.0.0.1", server.port))
    connection.sendall(request_bytes(body, version))
    return connection


def request_bytes(body, version="1.1"):
    data = json.dumps(body).encode()
    head = f"POST {PATH} HTTP/{version}\r\nHost: x\r\nContent-Type: application/json\r\n"
    return f"{head}Content-Length: {len(data)}\r\n\r\n".encode() + data
