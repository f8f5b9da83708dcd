"""Attention over pages: what a cache in one piece gives, bit for bit, and what a prompt that was shared says."""

import pytest
import torch
from fakes import DEVICE, tiny_target
from test_pages import SIZES

from radar.target.attention import attend, causal_ancestors
from radar.target.cache import StaticKVCache
from radar.target.model import TargetModel
from radar.target.pages import PagedKVCache
from radar.target.prompt_attention import Chain
from radar.target.running import Owner, running
from radar_kernels.ancestor_paths import ancestor_paths
from radar_kernels.reference_canonical import PAGE


@pytest.mark.parametrize("kind", ["words", "paths", "chain"])
def test_attention_finds_the_same_in_pages(kind):
    """Bit for bit, for rows of different lengths; what stands behind them is not seen."""
    torch.manual_seed(1)
    sizes = SIZES | {"head_dim": 16}
    static = StaticKVCache(batch_size=2, capacity=4 * PAGE, **sizes)
    paged = PagedKVCache(batch_size=2, capacity=4 * PAGE, **sizes)
    assert paged.reserve(1, 70)
    assert paged.reserve(0, 200)
    assert paged.reserve(1, 150)
    paged.publish()
    text = torch.randn(2, 2, 2, 2, 180, 16, device=DEVICE)
    length = torch.tensor([180, 130], device=DEVICE)
    query, key, value = (torch.randn(2, heads, 12, 16, device=DEVICE) for heads in (4, 2, 2))
    words = causal_ancestors(12, DEVICE).expand(2, -1, -1).contiguous()
    seen = {"words": words, "paths": ancestor_paths(words, 12), "chain": Chain.behind(length, 12)}[kind]
    found = []
    for cache in (static, paged):
        for layer in range(2):
            cache.write(layer, *text[:, layer], torch.zeros_like(length))
        cache.length.copy_(length)
        cache.set_window(192)
        with running(Owner(), cache):
            found.append(attend(query, key, value, length, seen, 1, 0.3))
    assert torch.equal(*found)


@torch.inference_mode()
def test_a_shared_prefix_gives_the_same_logits():
    """As if the prompt had been run from its start, in the same chunks."""
    target = TargetModel(tiny_target(), max_length=300, max_rows=64, batch_size=3)
    cache = target.cache
    rows = [target.row(row) for row in range(3)]
    prompts = [[(7 * i + i * i) % 17 for i in range(128)] + tail for tail in ([3] * 40, [3, *[5, 2] * 10])]

    def run(row, prompt, start):
        assert cache.reserve(row, 300)
        cache.publish()
        rows[row].cache.length.fill_(start)
        for first in range(start, len(prompt), 64):
            ids = torch.tensor([prompt[first : first + 64]], device=DEVICE)
            logits, taps = rows[row].verify_chain(ids)
            rows[row].advance(ids.shape[1])
        return logits, taps

    run(0, prompts[0], 0)
    cache.remember(0, prompts[0])
    expected = run(2, prompts[1], 0)
    assert cache.share(1, prompts[1]) == 128
    for a, b in zip(run(1, prompts[1], 128), expected, strict=True):
        assert torch.equal(a, b)
    cache.free(0)  # what it shared stays
    again = rows[1].verify_chain(torch.tensor([[4]], device=DEVICE))[0]
    assert torch.equal(again, rows[2].verify_chain(torch.tensor([[4]], device=DEVICE))[0])
