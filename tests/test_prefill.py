"""A prompt in chunks: every token once, in as few rows as the shapes allow, with the result of one pass."""

import itertools

import pytest
import torch
from fakes import tiny_draft, tiny_target

from radar import TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.engine.prefill import Prefill, chunk_sizes, split
from radar.target.model import TargetModel

TREE = TreeConfig(total_tokens=8, tree_top_k=3, max_calls=3)


SIZES = {16: 1, 64: 17, 256: 193}


@pytest.mark.parametrize(
    ("left", "expected"),
    [(1, [16]), (16, [16]), (17, [64]), (64, [64]), (65, [64, 16]), (192, [64] * 3), (193, [256]), (300, [256, 64])],
)
def test_a_chunk_has_the_rows_that_its_tokens_call_for(left, expected):
    assert [rows for _, _, rows in split(0, left, SIZES)] == expected


@pytest.mark.parametrize(("start", "stop"), [*itertools.product((0, 3, 64), (65, 100, 333, 1000))])
def test_every_token_is_in_one_chunk(start, stop):
    covered = [first + i for first, count, rows in split(start, stop, SIZES) for i in range(count)]
    assert covered == list(range(start, stop))
    assert all(0 < count <= rows for _, count, rows in split(start, stop, SIZES))


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
    assert several == [rows for _, _, rows in split(0, length, {16: 1, 64: 33})]
    for a, b in zip(whole, parts, strict=True):
        torch.testing.assert_close(a, b, atol=2e-5, rtol=1e-4)


def test_some_size_serves_a_single_token():
    for kind in ("cpu", "cuda"):
        sizes = chunk_sizes(torch.device(kind))
        assert list(sizes) == sorted(sizes)
        assert list(sizes.values()) == sorted(sizes.values())
        assert min(sizes.values()) == 1
