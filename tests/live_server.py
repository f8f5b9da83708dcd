"""A server of the embedded pair on a free port of this machine, in a thread."""

import contextlib
import threading
import time

import torch

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.serve.app import make_app
from radar.serve.models import ServedModel
from radar.serve.server import RadarServer, bound_socket
from radar.serve.settings import Limits

NAME, ROWS, LENGTH = "tiny", 4, 256
TREE = TreeConfig(total_tokens=8, max_calls=2, tree_top_k=4)
OPTIONS = {"max_batch_size": ROWS, "max_length": LENGTH}


def make_decoder(rows=ROWS):
    """A decoder that drafts in every round."""
    options = OPTIONS | {"max_batch_size": rows}
    return RadarDecoder.from_pretrained(
        device="cpu", dtype=torch.float32, policy=FixedDepth(2), tree=TREE, fallback=False, **options
    )


def plain_beside(decoder, rows=ROWS):
    options = OPTIONS | {"max_batch_size": rows}
    return AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, **options)


class Live:
    """A running server.

    Attributes:
        url: of it, without a slash at the end.
        app, server: its parts.
    """

    def __init__(self, models, **options):
        limits = options.pop("limits", Limits())
        self.app = make_app([ServedModel(name, decoder) for name, decoder in models.items()], limits=limits, **options)
        self.server = RadarServer(self.app, limits, with_logs=False)
        listener = bound_socket("127.0.0.1", 0)
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
    """Texts that the engine holds, waiting ones left out."""
    return len(decoder._maker._batch._texts)
