"""A prompt in chunks: every token once, in as few rows as the shapes allow, with the result of one pass."""

import itertools

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target

from radar import TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.engine.prefill import SIZES as SHIPPED
from radar.engine.prefill import Prefill, chunk_sizes, split
from radar.target.model import TargetModel
from radar.target.prompt_attention import MOST_ROWS

TREE = TreeConfig(total_tokens=8, tree_top_k=3, max_calls=3)


SIZES = {16: 1, 64: 17, 256: 193}


@pytest.mark.parametrize(
    ("left", "expected"),
    [(1, [16]), (16, [16]), (17, [64]), (64, [64]), (65, [64, 16]), (192, [64] * 3), (193, [256]), (300, [256, 64])],
)
def test_a_chunk_has_the_rows_that_its_tokens_call_for(left, expected):
    assert [rows for _, _, rows in split(0, left, SIZES, None)] == expected


@pytest.mark.parametrize(("start", "stop"), [*itertools.product((0, 3, 64), (65, 100, 333, 1000))])
def test_every_token_is_in_one_chunk(start, stop):
    covered = [first + i for first, count, rows in split(start, stop, SIZES, None) for i in range(count)]
    assert covered == list(range(start, stop))
    assert all(0 < count <= rows for _, count, rows in split(start, stop, SIZES, None))


LONG = {4: 1, 8: 5}  # small chunks, for prompts that are long beside them


@pytest.mark.parametrize(
    ("length", "expected"),
    [(16, [8, 8]), (17, [17]), (40, [40]), (41, [32, 9]), (96, [32] * 3), (104, [32, 32, 40]), (105, [32] * 3 + [9])],
)
@pytest.mark.parametrize("start", [0, 5])
def test_a_long_prompt_has_large_chunks_and_no_small_ones(start, length, expected):
    found = list(split(start, start + length, LONG, 32))
    assert [rows for _, _, rows in found] == expected
    assert all(count == rows for _, count, rows in found)
    assert [first for first, _, _ in found] == [start + sum(expected[:i]) for i in range(len(expected))]


@pytest.mark.parametrize(
    ("length", "expected"),
    [
        (129, [128, 64]), (512, [128] * 4), (513, [1024]), (1100, [1024, 128]), (2048, [1024, 1024]), (2049, [2049]),
        (4096, [4096]), (4097, [4097]), (5120, [5120]),
        (5121, [4096, 1025]),
    ],
)  # fmt: skip
def test_the_chunks_of_a_card(length, expected):
    assert [rows for _, _, rows in split(0, length, SHIPPED["cuda"], MOST_ROWS)] == expected


@pytest.mark.skipif(DEVICE.type != "cuda", reason="16-bit attention of many rows runs on a card")
@pytest.mark.parametrize("start", [0, 100])
@pytest.mark.parametrize("length", [613, 5221])
def test_long_prompts_in_16_bits_read_as_stock_reads_them(length, start):
    """Through FlashAttention-2, in one chunk and in two, also behind rows that are held."""
    model = tiny_target(max_position_embeddings=8192)
    ids = torch.arange(length, device=DEVICE)[None].pow(2) % 17
    with torch.inference_mode():
        expected = model(ids, logits_to_keep=1, output_hidden_states=True)
        target = TargetModel(model.to(torch.float16), max_length=length, max_rows=1024)
        draft = tiny_draft().to(torch.float16)
        drafter = Eagle3Drafter(draft, target.embed_tokens, TREE, max_length=length, max_rows=1024)
        prefill = Prefill(target, drafter)
        assert prefill.large == MOST_ROWS
        target.refresh(), drafter.refresh()
        if start:
            prefill.run(ids[:, : start + 1])
        prefill.run(ids, start=start)
    taps = torch.cat([expected.hidden_states[layer][:, -1:] for layer in target.tap_layers], -1)
    for found, wanted in ((prefill.logits, expected.logits[:, 0]), (prefill.taps, taps)):
        torch.testing.assert_close(found.float(), wanted, atol=0.05 * float(wanted.std()), rtol=0.05)
    assert (target.cache.length.tolist(), drafter.cache.length.tolist()) == ([length], [length - 1])


@pytest.mark.parametrize("start", [0, 1, 30])
@pytest.mark.parametrize("length", [47, 64, 100])
def test_large_chunks_leave_what_small_ones_do(length, start, monkeypatch):
    """Also behind rows that are held already; one row of a chunk goes through the output layer."""
    monkeypatch.setattr("radar.engine.prefill.chunk_sizes", lambda device: LONG)
    monkeypatch.setattr("radar.target.model.LEAST_ROWS", 9)

    def run(large):
        target = TargetModel(tiny_target(), max_length=length, max_rows=8)  # no scratch rows for a large chunk
        target.has_flash = large is not None  # a chain, in whatever serves it here
        drafter = Eagle3Drafter(tiny_draft(), target.embed_tokens, TREE, max_length=length, max_rows=8)
        prefill, scored = Prefill(target, drafter), []
        target.bound.model.lm_head.register_forward_hook(lambda _module, args, _out: scored.append(args[0].shape[1]))
        unread = drafter.draft.midlayer  # of what has no later reader, nothing is computed
        for part in (unread.self_attn.q_proj, unread.self_attn.o_proj, unread.mlp, drafter.draft.lm_head):
            part.register_forward_hook(lambda *_: pytest.fail("computed for nobody"))
        target.refresh(), drafter.refresh()
        ids = torch.arange(length)[None].to(target.device) % 17
        with torch.inference_mode():
            if start:
                prefill.run(ids[:, : start + 1])
                scored.clear()
            prefill.large = large
            prefill.run(ids, start=start)
        assert target.cache.length.tolist() == [length]
        assert drafter.cache.length.tolist() == [length - 1]
        caches = [target.cache.keys[..., :length, :], target.cache.values[..., :length, :]]
        caches += [drafter.cache.keys[..., : length - 1, :], drafter.cache.values[..., : length - 1, :]]
        return [prefill.logits, prefill.taps, *caches], scored

    small, _ = run(None)
    large, scored = run(16)
    assert scored == [1] * len(list(split(start, length, LONG, 16)))
    for a, b in zip(small, large, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("length", [1, 9, 16, 17, 33, 70, 100])
def test_caches_and_results_are_those_of_one_pass(length, monkeypatch):
    def run(sizes):
        monkeypatch.setattr("radar.engine.prefill.chunk_sizes", lambda device: sizes)
        target = TargetModel(tiny_target(), max_length=160, max_rows=160)
        drafter = Eagle3Drafter(tiny_draft(), target.embed_tokens, TREE, max_length=160, max_rows=160)
        prefill, seen = Prefill(target, drafter), []
        ids = torch.arange(length)[None].to(target.device) % 17
        with torch.inference_mode():
            prefill.run(ids, {rows: lambda n=rows: (seen.append(n), prefill.chunk(n)) for rows in sizes})
        assert target.cache.length.tolist() == [length]
        assert drafter.cache.length.tolist() == [length - 1]  # the last token's partner is not known yet
        caches = [target.cache.keys[..., :length, :], target.cache.values[..., :length, :]]
        caches += [drafter.cache.keys[..., : length - 1, :], drafter.cache.values[..., : length - 1, :]]
        return [prefill.logits, prefill.taps, *caches], seen

    whole, one = run({128: 1})
    parts, several = run({16: 1, 64: 33})
    assert one == [128]
    assert several == [rows for _, _, rows in split(0, length, {16: 1, 64: 33}, None)]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_some_size_serves_a_single_token():
    for kind in ("cpu", "cuda"):
        sizes = chunk_sizes(torch.device(kind))
        assert list(sizes) == sorted(sizes)
        assert list(sizes.values()) == sorted(sizes.values())
        assert min(sizes.values()) == 1


@pytest.mark.gpu
@pytest.mark.skipif(
    not torch.cuda.is_available() or torch.cuda.get_device_capability() != (9, 0),
    reason="rows are added up in one order on Hopper alone",
)
@torch.inference_mode()
def test_a_short_prompt_reads_alike_in_any_chunks():
    """Bit for bit, and whatever the cache has room for."""
    model = tiny_target(max_position_embeddings=16384).to(torch.bfloat16)
    prompt = torch.randint(17, (1, 300), device=DEVICE)
    found = []
    for sizes, max_length in (({64: 0}, 400), ({128: 0}, 400), ({16: 0, 64: 17, 128: 65}, 9000)):
        target = TargetModel(model, max_length=max_length, max_rows=128, tap_layers=(1, 2))
        prefill = Prefill(target)
        prefill.sizes, prefill.large = sizes, None
        prefill.run(prompt)
        found.append((prefill.logits, prefill.taps))
    for logits, taps in found[1:]:
        assert torch.equal(logits, found[0][0])
        assert torch.equal(taps, found[0][1])
