"""What a decoder took is given back with it, at once and without a garbage collection; models are not kept."""

import gc
import weakref
from contextlib import contextmanager, nullcontext
from functools import partial

import pytest
import torch
from fakes import tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.engine.capture import capture, capture_each

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
KINDS = ["eager", "graph", "plain", "plain graph"]
needs_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")


def make(kind, model, draft):
    options = {"max_length": 128, "engine": "graph" if "graph" in kind else "eager"}
    if "plain" in kind:
        return AutoregressiveDecoder(model, **options)
    return RadarDecoder(model, draft=draft, tree=TreeConfig(total_tokens=20, max_calls=4, tree_top_k=4), **options)


@contextmanager
def no_collection():
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def use(decoder):
    decoder.generate(PROMPT, max_new_tokens=12)
    decoder.generate(PROMPT, max_new_tokens=4, temperature=1.0, seed=1)
    decoder.generate(PROMPT, max_new_tokens=4, logits_processor=[lambda ids, scores: scores])
    stream = decoder.rounds(PROMPT, max_new_tokens=20)
    next(stream)
    if isinstance(decoder, RadarDecoder):
        decoder.policy = FixedDepth(2)
        decoder.generate(PROMPT, max_new_tokens=4)


def watched(decoder, model, draft):
    """Weak references to what must go with the decoder, and to what must go with model and head."""
    engine = decoder.engine
    ours = [decoder, engine, engine.target, engine.target.bound, engine.target.cache, engine.target.cache.keys]
    if isinstance(decoder, RadarDecoder):
        ours += [engine.drafter, engine.drafter.cache.keys, engine.steps, engine.steps.taps, engine.drafter.tree]
    theirs = [model.get_decoder().layers[0].self_attn.q_proj.weight, model.lm_head.weight, draft.fc.weight]
    return [weakref.ref(one) for one in ours], [weakref.ref(one) for one in theirs]


@pytest.mark.parametrize("kind", [k if k in ("eager", "plain") else pytest.param(k, marks=needs_cuda) for k in KINDS])
def test_a_decoder_goes_by_counting_and_then_the_model(kind):
    model, draft = tiny_target(), tiny_draft()
    decoder = make(kind, model, draft)
    use(decoder)
    ours, theirs = watched(decoder, model, draft)
    with no_collection():
        del decoder
        assert [one() for one in ours if one() is not None] == []
        assert all(one() is not None for one in theirs)
        del model, draft
        assert [one() for one in theirs if one() is not None] == []


def test_what_a_graph_was_captured_from_lives_as_long_as_it(monkeypatch):
    """Its kernels read tensors that the work holds, and perhaps nobody else."""

    class Graph:
        def replay(self):
            pass

    for name, fake in (("CUDAGraph", Graph), ("graph", lambda *_, **__: nullcontext()), ("synchronize", lambda: None)):
        monkeypatch.setattr(torch.cuda, name, fake)
    monkeypatch.setattr("radar.engine.capture.on_stream", lambda stream, work: work())
    held = [torch.zeros(1), torch.ones(1)]
    lives = [weakref.ref(tensor) for tensor in held]
    graph = capture(partial(held[0].add_, 1), None)
    replays = capture_each(held[1].add_, [3], None)
    with no_collection():
        del held
        assert [one() is not None for one in lives] == [True, True]
        del graph, replays
        assert [one() for one in lives] == [None, None]


@needs_cuda
@pytest.mark.gpu
@pytest.mark.parametrize("kind", ["graph", "plain graph", "eager"])
def test_twenty_decoders_leave_memory_flat(kind):
    model, draft = tiny_target(), tiny_draft()
    with no_collection():
        seen = []
        for _ in range(20):
            decoder = make(kind, model, draft)
            decoder.generate(PROMPT, max_new_tokens=12)
            del decoder
            torch.cuda.synchronize()
            seen.append(torch.cuda.memory_allocated())
    assert max(seen[2:]) <= seen[1]


@needs_cuda
@pytest.mark.gpu
def test_offload_and_reload_do_not_double_memory():
    model = tiny_target(hidden_size=256, intermediate_size=1024)
    decoder = AutoregressiveDecoder(model, max_length=64, engine="eager")
    decoder.generate(PROMPT, max_new_tokens=4)
    before, size = torch.cuda.memory_allocated(), sum(p.numel() * p.element_size() for p in model.parameters())
    with no_collection():
        model.cpu()
        assert torch.cuda.memory_allocated() <= before - size
        model.cuda()
        decoder.generate(PROMPT, max_new_tokens=4)
        assert torch.cuda.memory_allocated() <= before + size // 8
