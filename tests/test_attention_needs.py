"""Attention with a window, a softcap and a sink: rows with paths and rows of a prompt say what the formula says."""

import math

import pytest
import torch
from fakes import DEVICE
from test_pages import SIZES

from radar.target.attention import attend, causal_ancestors
from radar.target.cache import StaticKVCache
from radar.target.needs import Needs
from radar.target.pages import PagedKVCache
from radar.target.prompt_attention import Chain, has_flash
from radar.target.running import Owner, running
from radar_kernels.ancestor_paths import ancestor_paths
from radar_kernels.reference_canonical import PAGE

ROWS, LENGTHS = 12, [180, 130]
SINK = torch.tensor([1.0, -2.0, 0.5, 3.0])
NEEDS = {
    "nothing": Needs(),
    "window": Needs(window=20),
    "itself": Needs(window=1),
    "too wide": Needs(window=4 * PAGE),
    "softcap": Needs(softcap=0.7),
    "sink": Needs(sink=SINK.to(DEVICE)),
    "all": Needs(25, 0.7, SINK.to(DEVICE)),
}


def dense(query, key, value, needs, scale):
    """Row i of N, the last of S keys, sees those up to its own that the window shows [1, H, N, D], in float64."""
    key, value = (x.double().repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    place = torch.arange(key.shape[2], device=DEVICE)
    last = place[-query.shape[2] :, None]
    scores = query.double() @ key.mT * scale
    if needs.softcap:
        scores = needs.softcap * torch.tanh(scores / needs.softcap)
    seen = (place <= last) & (place > last - (needs.window or len(place)))
    weights = scores.masked_fill(~seen, -math.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if needs.sink is not None:
        total = total + needs.sink.double().exp()[:, None, None]
    return weights / total @ value


def attended(cache, text, rows, seen, needs):
    """[B, N, H, D] in the cache's second layer, where what nobody sees is NaN."""
    length = torch.tensor(LENGTHS, device=DEVICE)
    cache.keys.fill_(math.nan), cache.values.fill_(math.nan)
    cache.write(1, *text, torch.zeros_like(length))
    cache.length.copy_(length)
    cache.set_window(192)
    with running(Owner(), cache):
        return attend(*rows, length, seen, 1, 0.3, needs)


def expected_of(text, rows, needs):
    query, key, value = rows
    made = []
    for row, length in enumerate(LENGTHS):
        joined = (torch.cat((x[row, :, :length], new[row]), 1)[None] for x, new in zip(text, (key, value), strict=True))
        made.append(dense(query[row : row + 1], *joined, needs, 0.3).transpose(1, 2))
    return torch.cat(made)


@pytest.mark.parametrize("kind", ["paths", "chain"])
@pytest.mark.parametrize("name", NEEDS)
def test_attention_is_what_the_formula_says_in_pages_too(kind, name):
    torch.manual_seed(1)
    sizes, needs = SIZES | {"head_dim": 16}, NEEDS[name]
    static = StaticKVCache(batch_size=2, capacity=4 * PAGE, **sizes)
    paged = PagedKVCache(batch_size=2, capacity=4 * PAGE, **sizes)
    assert all(paged.reserve(row, 4 * PAGE) for row in range(2))
    paged.publish()
    text = torch.randn(2, 2, 2, 180, 16, device=DEVICE)
    rows = [torch.randn(2, heads, ROWS, 16, device=DEVICE) for heads in (4, 2, 2)]
    words = causal_ancestors(ROWS, DEVICE).expand(2, -1, -1).contiguous()
    chain = Chain.behind(torch.tensor(LENGTHS, device=DEVICE), ROWS)
    seen = ancestor_paths(words, ROWS) if kind == "paths" else chain
    expected = expected_of(text, rows, needs)
    for cache in (static, paged):
        found = attended(cache, text, rows, seen, needs)
        torch.testing.assert_close(found.double(), expected, atol=5e-6, rtol=0)


def test_layers_may_have_fewer_and_narrower_heads():
    torch.manual_seed(1)
    static = StaticKVCache(batch_size=2, capacity=4 * PAGE, **SIZES | {"head_dim": 32, "num_kv_heads": 3})
    text = torch.randn(2, 2, 2, 180, 16, device=DEVICE)
    rows = [torch.randn(2, heads, ROWS, 16, device=DEVICE) for heads in (4, 2, 2)]
    words = causal_ancestors(ROWS, DEVICE).expand(2, -1, -1).contiguous()
    for seen in (words, ancestor_paths(words, ROWS)):
        found = attended(static, text, rows, seen, Needs())
        torch.testing.assert_close(found.double(), expected_of(text, rows, Needs()), atol=5e-6, rtol=0)


@pytest.mark.parametrize("name", ["window", "softcap", "sink"])
def test_words_say_nothing_of_a_window(name):
    cache = StaticKVCache(batch_size=2, capacity=4 * PAGE, **SIZES | {"head_dim": 16})
    rows = [torch.randn(2, heads, ROWS, 16, device=DEVICE) for heads in (4, 2, 2)]
    words = causal_ancestors(ROWS, DEVICE).expand(2, -1, -1).contiguous()
    with pytest.raises(RuntimeError, match=r"layer 1 needs .* for which its rows must have paths"):
        attended(cache, torch.randn(2, 2, 2, 180, 16, device=DEVICE), rows, words, NEEDS[name])


@pytest.mark.gpu
@pytest.mark.skipif(DEVICE.type != "cuda", reason="the kernel runs on a card")
@pytest.mark.parametrize("dim", [64, 128])
@pytest.mark.parametrize("name", ["window", "itself", "sink"])
def test_flash_attention_knows_windows_and_sinks(name, dim):
    assert has_flash(DEVICE, torch.bfloat16, dim)
    torch.manual_seed(1)
    sizes = SIZES | {"head_dim": dim, "dtype": torch.bfloat16}
    cache = StaticKVCache(batch_size=2, capacity=16 * PAGE, **sizes)
    text = torch.randn(2, 2, 2, 180, dim, device=DEVICE).bfloat16()
    rows = [torch.randn(2, heads, 600, dim, device=DEVICE).bfloat16() for heads in (4, 2, 2)]
    chain = Chain.behind(torch.tensor(LENGTHS, device=DEVICE), 600)
    found = attended(cache, text, rows, chain, NEEDS[name])
    torch.testing.assert_close(found.double(), expected_of(text, rows, NEEDS[name]), atol=3e-2, rtol=0)
