"""Decoders of several rows, and a criterion that holds a text up."""

import functools
import threading

from decoders import WordTokenizer
from fakes import VOCAB, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig

TREE = TreeConfig(total_tokens=16, max_calls=3, tree_top_k=4)
PROMPTS = [[(7 * i + i * i + k) % VOCAB for i in range(2 + 5 * k)] for k in range(8)]


def make_rows(kind, rows, model=None, **options):
    """A "radar" or "plain" decoder of so many rows."""
    model = tiny_target() if model is None else model
    options = {"max_length": 100, "tokenizer": WordTokenizer(), "max_batch_size": rows} | options
    if kind == "plain":
        return AutoregressiveDecoder(model, **options)
    return RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(3), tree=TREE, fallback=False, **options)


@functools.cache
def _one():
    return make_rows("radar", 1)


def alone(prompt, **options):
    """What a prompt's text is by itself."""
    return _one().generate(prompt, **options).token_ids


def tokens_of(rounds):
    """What is left to read of a text."""
    return [token for item in rounds for token in item.tokens]


class Gate:
    """A stopping criterion that lets its text go on when it is told to."""

    def __init__(self):
        self.reached, self.opened = threading.Event(), threading.Event()

    def __call__(self, ids, scores):
        self.reached.set()
        assert self.opened.wait(20)
        return False


class Late(Gate):
    """The same at its text's tenth token, when a third text's prompt waits behind two full rows, whatever rounds make:
    its first token waits until the others have been asked for."""

    def __init__(self):
        super().__init__()
        self.asked = threading.Event()
        self._count = 0

    def __call__(self, ids, scores):
        self._count += 1
        if self._count == 1:
            assert self.asked.wait(20)
        return super().__call__(ids, scores) if self._count == 10 else False
