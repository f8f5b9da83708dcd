"""Decoders made and run in several threads share a target and a draft head, and do not get into each other's way."""

import contextlib
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, RadarDecoder, TreeConfig, radar_generate
from radar.draft import eagle3
from radar.draft.drafter import Eagle3Drafter
from radar.engine.ambient import StreamOrder
from radar.engine.capture import capture
from radar.errors import BusyError
from radar.target.attending import _users
from radar.target.layers import fuse_projections
from radar.target.model import TargetModel

TREE = TreeConfig(total_tokens=20, max_calls=4, tree_top_k=4)


def drafters(count):
    """Drafters of one head, whose projections are fused as they are on a GPU."""
    draft, embed = tiny_draft(), tiny_target().get_input_embeddings()
    made = [Eagle3Drafter(draft, embed, TREE, max_length=64, max_rows=8) for _ in range(count)]
    bound = made[0]._bound
    bound.groups, bound.heads = fuse_projections([draft.midlayer], [draft.fc, draft.lm_head], bound.owner), {}
    assert all(one._bound is bound for one in made)
    return made


def drafted(drafter, seed):
    """What a drafter proposes, each thread on a text of its own."""
    generator = torch.Generator().manual_seed(seed)
    taps = torch.randn(1, TREE.max_accepted, 96, generator=generator).to(DEVICE)
    tokens = torch.full((1, TREE.max_accepted), 1 + seed, device=DEVICE)
    with torch.inference_mode():
        drafter.reset()
        drafter.begin(tokens, taps, torch.tensor([TREE.max_accepted], device=DEVICE))
        drafter.step()
    return drafter.tree.beam_scores.clone(), drafter.tree.beam_tokens.clone(), drafter.cache.keys.clone()


def test_threads_take_turns_on_a_draft_head(monkeypatch):
    """They would meet between two layers that share a product: one thread has it, the other gets the wrong part."""
    pair = drafters(2)
    expected = [drafted(one, seed) for seed, one in enumerate(pair)]
    assert not torch.equal(expected[0][0], expected[1][0])
    silu, meeting = torch.nn.functional.silu, threading.Barrier(2)

    def meet(x):
        with contextlib.suppress(threading.BrokenBarrierError):  # nobody else comes: it waits at the lock
            meeting.wait(0.3)
        return silu(x)

    monkeypatch.setattr(eagle3.F, "silu", meet)
    with ThreadPoolExecutor(2) as pool:
        for found, wanted in zip(pool.map(drafted, pair, range(2)), expected, strict=True):
            for ours, theirs in zip(found, wanted, strict=True):
                # a thread that shares the cores may split a product otherwise; a wrong part of it is far off
                torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    assert meeting.broken
    assert not any("forward" in module.__dict__ for module in pair[0].draft.modules())


def test_an_error_in_a_draft_call_does_not_keep_the_head(monkeypatch):
    one, other = drafters(2)
    with monkeypatch.context() as patch:
        patch.setattr(eagle3.F, "silu", lambda x: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            drafted(one, 0)
    with ThreadPoolExecutor(1) as pool:
        assert torch.equal(pool.submit(drafted, other, 0).result(600)[1], drafted(one, 0)[1])


def test_a_decoder_is_not_made_while_another_thread_runs_the_model():
    """Making one looks at hooks and forwards of the modules, and moves their weights."""
    model = tiny_target(num_hidden_layers=6)
    first = TargetModel(model, max_length=64, max_rows=8)
    with ThreadPoolExecutor(1) as pool:
        with first.bound.running(first.cache):
            second = pool.submit(TargetModel, model, max_length=64, max_rows=8, tap_layers=(1, 2, 4))
            with pytest.raises(TimeoutError):
                second.result(0.3)
        assert second.result(600).tap_layers == (1, 2, 4)


def test_a_stock_forward_in_another_thread_is_the_models_own():
    """With padding too: its masks follow its own attention, its layers are not ours and leave no taps."""
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=8)
    target.bound._groups = fuse_projections(model.model.layers, [model.lm_head], target.bound._owner)
    ids = torch.tensor([[1, 5, 3, 2], [0, 0, 3, 2]], device=DEVICE)
    mask = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1]], device=DEVICE)

    @torch.inference_mode()
    def stock():
        return model(input_ids=ids, attention_mask=mask).logits

    expected = stock()
    with ThreadPoolExecutor(1) as pool, target.bound.running(target.cache, target.tap_layers):
        for _ in range(3):
            assert torch.equal(pool.submit(stock).result(600), expected)
        assert pool.submit(lambda: model.config._attn_implementation).result(600) != "radar_tree"
        assert model.config._attn_implementation == "radar_tree"
        assert target.bound._tapped(target.tap_layers)._kept == {}
    assert model.config._attn_implementation != "radar_tree"


def test_threads_decode_and_call_the_model_at_once():
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=8)
    ids = torch.tensor([[1, 5, 3, 2]], device=DEVICE)

    @torch.inference_mode()
    def ours(_):
        return target.verify_chain(ids)[0]

    @torch.inference_mode()
    def stock(_):
        return model(input_ids=ids).logits

    expected = ours(0), stock(0)
    with ThreadPoolExecutor(4) as pool:
        for a, b in zip(pool.map(ours, range(40)), pool.map(stock, range(40)), strict=True):
            assert torch.equal(a, expected[0])
            assert torch.equal(b, expected[1])


def test_models_may_share_a_config():
    """Its class says whose attention runs: the one who ends first leaves it to the other."""
    model = tiny_target()
    other = type(model)(model.config).to(DEVICE).eval()
    assert other.config is model.config
    first, second = (TargetModel(one, max_length=64, max_rows=8) for one in (model, other))
    prompt, ids = (torch.tensor([row], device=DEVICE) for row in ([1, 5, 3, 2], [7, 1, 4]))

    @torch.inference_mode()
    def scores(target, between):
        target.cache.reset()
        target.verify_chain(prompt)
        target.advance(4)
        with target.bound.running(target.cache, target.tap_layers):
            between()
            return target.bound.scores(target.tap_layers, *target.chain(ids), target.cache.length)[0]

    expected = [scores(one, lambda: None) for one in (first, second)]
    with ThreadPoolExecutor(1) as pool:

        def meanwhile():
            assert torch.equal(pool.submit(scores, second, lambda: None).result(600), expected[1])

        assert torch.equal(scores(first, meanwhile), expected[0])
    assert type(model.config) is type(tiny_target().config)
    assert _users == {}


def test_a_hook_that_asks_for_a_text_of_the_same_model_is_told_so():
    """It would wait for itself for ever."""
    model, draft = tiny_target(), tiny_draft()
    ours = RadarDecoder(model, draft=draft, tree=TREE, max_length=64, engine="eager")
    others = [
        AutoregressiveDecoder(model, max_length=64, engine="eager"),
        RadarDecoder(tiny_target(), draft=draft, tree=TREE, max_length=64, engine="eager"),
    ]
    expected = ours.generate([1, 2, 3], max_new_tokens=20).token_ids
    for module, other in zip((model.model.layers[1].mlp, draft.lm_head), others, strict=True):
        hook = module.register_forward_hook(lambda *_, other=other: other.generate([4, 5], max_new_tokens=2) and None)
        with pytest.raises(BusyError, match="in the middle of a forward"):
            ours.generate([1, 2, 3], max_new_tokens=20)
        hook.remove()
        assert ours.generate([1, 2, 3], max_new_tokens=20).token_ids == expected
        assert len(other.generate([4, 5], max_new_tokens=4).token_ids) == 4


@pytest.mark.parametrize("entry", ["decoder", "custom_generate"])
def test_a_hook_does_not_wait_for_who_waits_for_its_model(entry):
    """The other decoder is in the middle of a text, or being made, in another thread, which waits for this forward."""
    model = tiny_target()
    ours = AutoregressiveDecoder(model, max_length=64, engine="eager")
    other = RadarDecoder(model, draft=tiny_draft(), tree=TREE, max_length=64, engine="eager")
    function = radar_generate(draft=tiny_draft(), tree=TREE, max_length=64, engine="eager")
    prompt, pool = torch.tensor([[4, 5]], device=DEVICE), ThreadPoolExecutor(1)
    found = []

    def ask():
        if entry == "decoder":
            return other.generate_ids(prompt, max_new_tokens=4, pad_token_id=0)
        return model.generate(prompt, custom_generate=function, max_new_tokens=4, pad_token_id=0)

    def hook(*_):
        if not found:
            found.append(pool.submit(ask))
            with contextlib.suppress(TimeoutError):
                found[0].result(0.5)
            with pytest.raises(BusyError, match="of the same model"):
                ask()

    model.model.layers[1].mlp.register_forward_hook(hook)
    with pool:
        assert len(ours.generate([1, 2, 3], max_new_tokens=6).token_ids) == 6
        assert found[0].result(600).shape == (1, 6)


class Stream:
    def __init__(self):
        self.waited = []

    def wait_stream(self, other):
        self.waited.append(other)


def test_every_round_comes_behind_the_one_before_on_whatever_stream(monkeypatch):
    one, two = Stream(), Stream()
    streams = iter([one, one, two, two, one])
    order = StreamOrder()
    with monkeypatch.context() as patch:  # a decoder on a GPU asks for real streams
        patch.setattr(torch.cuda, "current_stream", lambda device: next(streams))
        for _ in range(5):
            order.follow(torch.device("cuda"))
    assert (one.waited, two.waited) == ([two], [one])
    ours, asked = AutoregressiveDecoder(tiny_target(), max_length=64, engine="eager"), []
    monkeypatch.setattr(ours._kept.order, "follow", asked.append)
    assert len(list(ours.rounds([1, 2, 3], max_new_tokens=5))) == 5 == len(asked)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
@pytest.mark.gpu
def test_texts_of_one_decoder_under_several_streams_are_ordered():
    """A text that was left behind in one stream may still run a round there when the next text's prompt comes."""
    ours = RadarDecoder(tiny_target(), draft=tiny_draft(), tree=TREE, max_length=256, fallback=False)
    prompts = [[(7 * i + i * i + k) % 17 for i in range(90)] for k in range(2)]
    expected = [ours.generate(prompt, max_new_tokens=40).token_ids for prompt in prompts]
    one, two = torch.cuda.Stream(), torch.cuda.Stream()
    for _ in range(20):
        with torch.cuda.stream(one):
            left = ours.rounds(prompts[0], max_new_tokens=40)
            next(left)
            torch.cuda._sleep(50_000_000)  # the round that is launched next waits behind it
            next(left)
            left.close()
        with torch.cuda.stream(two):
            assert ours.generate(prompts[1], max_new_tokens=40).token_ids == expected[1]
        with torch.cuda.stream(one):
            assert ours.generate(prompts[0], max_new_tokens=40).token_ids == expected[0]


def test_one_capture_at_a_time(monkeypatch):
    running, most = [], []

    class Graph:
        pass

    @contextlib.contextmanager
    def graph(_graph, *, stream, capture_error_mode):
        assert (stream, capture_error_mode) == ("a stream", "relaxed")
        running.append(stream)
        most.append(len(running))
        yield
        running.pop()

    monkeypatch.setattr(torch.cuda, "CUDAGraph", Graph)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: most.append(len(running) + 1))  # nor while another captures
    monkeypatch.setattr(torch.cuda, "graph", graph)
    with ThreadPoolExecutor(4) as pool:
        made = [pool.submit(capture, lambda: time.sleep(0.02), "a stream") for _ in range(4)]
        assert all(type(one.result(600)) is Graph for one in made)
    assert most == [1] * 8
