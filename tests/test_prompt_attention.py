"""Attention of a prompt's rows: a chain behind what is held, whichever kernel does it."""

import math

import pytest
import torch
from fakes import DEVICE

from radar.target.attention import attend
from radar.target.cache import StaticKVCache
from radar.target.prompt_attention import Chain, attend_chain, has_flash
from radar.target.running import Owner, running

KINDS = [(torch.float32, 2e-6)]
if DEVICE.type == "cuda":
    KINDS += [(torch.float16, 2e-3), (torch.bfloat16, 1.6e-2)]


def make(rows, seen, heads=4, kv_heads=2, dim=16, dtype=torch.float32):
    generator = torch.Generator().manual_seed(rows + seen)

    def random(*shape):
        return torch.randn(*shape, generator=generator).to(DEVICE, dtype)

    return random(2, heads, rows, dim), random(2, kv_heads, seen, dim), random(2, kv_heads, seen, dim)


def plain(query, key, value, scale):
    """Row i of N sees the keys up to S - N + i; in float32."""
    key, value = (x.float().repeat_interleave(query.shape[1] // x.shape[1], 1) for x in (key, value))
    rows, seen = query.shape[2], key.shape[2]
    row, column = torch.arange(rows, device=DEVICE)[:, None], torch.arange(seen, device=DEVICE)
    scores = (query.float() @ key.transpose(2, 3) * scale).masked_fill(column > seen - rows + row, -math.inf)
    return scores.softmax(-1) @ value


def chain_attention(query, key, value, scale):
    """With rows behind the keys that nobody may see."""
    length = torch.full((2,), key.shape[2] - query.shape[2], device=DEVICE)
    key, value = (torch.nn.functional.pad(x, (0, 0, 0, 9), value=math.nan) for x in (key, value))
    return attend_chain(query, key, value, Chain.behind(length, query.shape[2]), scale).transpose(1, 2)


@pytest.mark.parametrize(("dtype", "tolerance"), KINDS)
@pytest.mark.parametrize("heads", [(4, 2), (4, 4), (6, 1)])
@pytest.mark.parametrize(("rows", "seen"), [(1, 1), (7, 7), (64, 64), (5, 40), (64, 128), (100, 300)])
def test_each_row_sees_all_up_to_its_own(rows, seen, heads, dtype, tolerance):
    query, key, value = make(rows, seen, *heads, dtype=dtype)
    found = chain_attention(query, key, value, 0.3)
    torch.testing.assert_close(found.float(), plain(query, key, value, 0.3), atol=tolerance, rtol=0)


@pytest.mark.skipif(DEVICE.type != "cuda", reason="the kernel runs on a card")
@pytest.mark.parametrize("dim", [64, 128, 256])
@pytest.mark.parametrize("first", [0, 1, 300, 4096])
def test_flash_attention_takes_shared_keys_and_aligns_the_chain_with_the_last(first, dim):
    """Aligned with the first key, or with other heads' keys, every row would be another."""
    assert has_flash(DEVICE, torch.bfloat16, dim)
    query, key, value = make(700, first + 700, 8, 2, dim, torch.bfloat16)
    found = chain_attention(query, key, value, dim**-0.5).float()
    torch.testing.assert_close(found, plain(query, key, value, dim**-0.5), atol=1.6e-2, rtol=0)


@pytest.mark.parametrize(("dtype", "tolerance"), KINDS)
def test_rows_go_where_they_are_to_be_and_see_the_cache(dtype, tolerance):
    cache = StaticKVCache(
        num_layers=2, batch_size=2, num_kv_heads=2, capacity=20, head_dim=16, dtype=dtype, device=DEVICE
    )
    query, key, value = make(17, 17, dtype=dtype)
    with running(Owner(), cache):
        halves = []
        for part in (slice(0, 9), slice(9, 17)):
            inputs = (x[:, :, part] for x in (query, key, value))
            chain = Chain.behind(cache.length, part.stop - part.start)
            halves.append(attend(*inputs, cache.length, chain, 1, 0.3))
            cache.keys[1, :, :, part.stop :], cache.values[1, :, :, part.stop :] = math.nan, math.nan
            cache.length += part.stop - part.start
    first, second = halves
    found = torch.cat((first, second), 1).transpose(1, 2).float()
    torch.testing.assert_close(found, plain(query, key, value, 0.3), atol=tolerance, rtol=0)
    assert torch.equal(cache.keys[1, :, :, :17], key)
    assert torch.equal(cache.values[1, :, :, :17], value)
    assert not cache.keys[0].any()


def test_who_has_no_such_kernel():
    assert not has_flash(torch.device("cpu"), torch.float16, 64)
    if DEVICE.type == "cuda" and torch.cuda.get_device_capability() >= (8, 0):
        assert has_flash(DEVICE, torch.bfloat16, 128)
        assert not has_flash(DEVICE, torch.float32, 128)
        assert not has_flash(DEVICE, torch.bfloat16, 320)
        assert not has_flash(DEVICE, torch.bfloat16, 36)
