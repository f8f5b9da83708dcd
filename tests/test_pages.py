"""Keys and values in pages: the host's account of them, and what a text finds in them."""

import pytest
import torch
from fakes import DEVICE
from hypothesis import given, settings
from hypothesis import strategies as st

from radar.errors import UsageError
from radar.target.cache import StaticKVCache
from radar.target.page_pool import PagePool
from radar.target.pages import PagedKVCache
from radar_kernels.reference_canonical import PAGE

SIZES = {"num_layers": 2, "num_kv_heads": 2, "head_dim": 4, "dtype": torch.float32, "device": DEVICE}


def make(rows=3, capacity=4 * PAGE, **options):
    return PagedKVCache(batch_size=rows, capacity=capacity, **SIZES, **options)


def write(cache, row, tokens, start=0):
    """Random keys and values of a row behind `start`, and they."""
    cache.publish()
    new = torch.randn(2, 2, 1, 2, tokens, 4, device=DEVICE)  # keys and values, layers
    for layer in range(2):
        cache.row(row).write(layer, *new[:, layer], torch.tensor([start], device=DEVICE))
    cache.length[row] = start + tokens
    return new


def read(cache, row, tokens):
    cache.publish()
    found = [cache.row(row).rows(layer) for layer in range(2)]
    return torch.stack([torch.stack(part) for part in found], 1)[..., :tokens, :]


def test_short_texts_take_few_pages():
    """32 texts of 200 tokens, and 60 nodes of a tree each, where contiguous rows would take 8,192 tokens."""
    cache = make(32, 8192 + 256, cache_tokens=20_000)
    assert all(cache.reserve(row, 200) for row in range(32))
    assert sum(map(len, cache.pool.held)) == 32 * 4
    assert all(cache.reserve(row, 200 + 60) for row in range(32))
    assert sum(map(len, cache.pool.held)) == 32 * 5
    assert cache.keys.numel() * 2 * 4 <= (20_000 + 2 * PAGE) * 2 * 2 * 2 * 4 * 4
    with pytest.raises(UsageError, match="cache_tokens must be at least 8448"):
        make(32, 8192 + 256, cache_tokens=8191)


def test_rows_of_several_texts_beside_a_static_cache():
    """Writes, commits and reads; a view of the first rows, and of one, is the same memory."""
    cache, static = make(), StaticKVCache(batch_size=3, capacity=4 * PAGE, **SIZES)
    torch.manual_seed(0)
    give = [(0, 130), (2, 200), (1, 60)]
    for row, tokens in give:  # so that their pages stand in no order
        assert cache.reserve(row, tokens)
    assert all(cache.reserve(row, 250) for row in (1, 0, 2))
    start = torch.tensor([130, 60, 200], device=DEVICE)
    path = torch.tensor([[0, 2, 5, 0], [0, 1, 3, 7], [0, 3, 4, 6]], device=DEVICE)
    count = torch.tensor([3, 4, 4], device=DEVICE)
    text = torch.randn(2, 2, 3, 2, 200, 4, device=DEVICE)
    tree = torch.randn(2, 2, 3, 2, 40, 4, device=DEVICE)
    cache.publish()
    for one in (cache, static):
        for layer in range(2):
            one.write(layer, *text[:, layer], torch.zeros_like(start))
            one.first(2).write(layer, *tree[:, layer, :2], start[:2])
            one.row(2).write(layer, *tree[:, layer, 2:], start[2:])
        one.length.copy_(start)
        one.first(2).commit(path[:2], count[:2])
        one.row(2).commit(path[2:], count[2:])
        one.set_window(240)
    assert cache.length.tolist() == static.length.tolist() == [133, 64, 204]
    for layer in range(2):
        for found, expected in zip(cache.rows(layer), static.rows(layer), strict=True):
            assert found.shape == expected.shape
            for row, length in enumerate(static.length.tolist()):
                assert torch.equal(found[row, :, :length], expected[row, :, :length])


def test_a_row_without_pages_leaves_the_others_as_they_are():
    cache = make()
    assert cache.reserve(0, 100)
    text = write(cache, 0, 100)
    write(cache, 1, 200)  # padding, or the scratch of a row without a text
    assert torch.equal(read(cache, 0, 100), text)
    pages = cache.pool.held[0]
    cache.free(0)
    assert cache.length[0] == 0
    assert cache.reserve(2, 100)
    assert set(cache.pool.held[2]) == set(pages)
    text = write(cache, 2, 100)
    write(cache, 0, 200)  # no longer where it was
    assert torch.equal(read(cache, 2, 100), text)


def test_captured_graphs_find_the_table_where_it_was():
    cache = make()
    table, row = cache.block_table, cache.row(1)
    assert cache.reserve(1, 70)
    cache.publish()
    assert cache.block_table is table
    assert row.block_table[0].tolist() == table[1].tolist() == [*cache.pool.held[1], 0, 0]


def test_a_text_moves_without_its_keys():
    cache = make()
    cache.reserve(2, 150)
    text, pages = write(cache, 2, 150), cache.pool.held[2]
    cache.move(2, 0, 150)
    assert cache.pool.held == [pages, [], []]
    assert cache.length.tolist() == [150, 0, 0]
    assert torch.equal(read(cache, 0, 150), text)


def test_a_text_waits_in_the_hosts_memory():
    cache = make(cache_tokens=5 * PAGE)
    cache.reserve(0, 140)
    text = write(cache, 0, 140)
    waiting = cache.swap_out(0)
    assert cache.length[0] == 0
    assert cache.reserve(1, 4 * PAGE)
    write(cache, 1, 256)
    assert not cache.swap_in(0, waiting)
    assert cache.pool.held[0] == []
    cache.free(1)
    for row in (1, 2):  # so that the pages come in another order
        cache.reserve(row, 1)
    for row in (1, 2):
        cache.free(row)
    assert cache.swap_in(0, waiting)
    assert cache.pool.held[0] != sorted(cache.pool.held[0])
    assert torch.equal(read(cache, 0, 140), text)
    assert cache.length[0] == 140


def prompt_of(*numbers, behind=1):
    """A block of 64 tokens for each number, and `behind` more."""
    return [number for number in numbers for _ in range(PAGE)] + [9] * behind


def test_what_texts_begin_with_is_stored_once():
    cache = make()
    cache.reserve(0, 150)
    text = write(cache, 0, 150)
    assert cache.share(1, prompt_of(1, 2)) == 0
    cache.remember(0, prompt_of(1, 2, behind=22))
    assert cache.share(1, prompt_of(1, 2)) == 2 * PAGE
    assert cache.pool.held[1] == cache.pool.held[0][:2]
    assert torch.equal(read(cache, 1, 128), text[..., :128, :])
    assert cache.length[1] == 128
    assert cache.share(2, prompt_of(1, 2, behind=0)) == PAGE  # the last token of a prompt is run always
    assert cache.share(2, [*prompt_of(1, behind=0), 5]) == 0  # the draft's pairs look one token ahead
    assert cache.share(2, prompt_of(3, 2)) == 0
    cache.remember(1, prompt_of(1, 2, behind=0))
    assert cache.share(2, prompt_of(1, 2, behind=0)) == PAGE
    cache.free(2)
    cache.free(0)
    cache.reserve(2, 256)
    write(cache, 2, 256)
    assert torch.equal(read(cache, 1, 128), text[..., :128, :])


def test_prefixes_of_nobody_make_room_the_end_of_the_oldest_first():
    pool = PagePool(5, 2)
    assert pool.reserve(0, 2)
    first = pool.held[0]
    pool.remember(0, prompt_of(1, 2))
    pool.free(0)
    pool.reserve(0, 2)
    pool.remember(0, prompt_of(3, 4))
    pool.free(0)
    assert pool.share(1, prompt_of(1, 2)) == 2
    assert pool.held[1] == first
    pool.free(1)  # now used later than the other
    assert pool.available == 5
    pool.reserve(0, 2)
    assert pool.share(1, prompt_of(3, 4)) == 1
    pool.free(1)
    pool.reserve(0, 3)
    assert pool.share(1, prompt_of(1, 2)) == 1
    assert pool.reserve(0, 4)  # instead of the prefix 3
    assert not pool.reserve(0, 5)
    assert pool.share(1, prompt_of(3, 4)) == 0
    assert pool.share(1, prompt_of(1, 2)) == 1
    pool.free(1)
    pool.forget()
    assert pool.share(1, prompt_of(1, 2)) == 0
    assert pool.reserve(1, 1)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["reserve", "free", "move", "share", "remember", "swap", "grow"]),
        st.integers(0, 3), st.integers(0, 3), st.lists(st.integers(1, 2), max_size=3),
    ),
    max_size=40,
)  # fmt: skip


def test_pages_are_left_to_others():
    pool = PagePool(5, 3)
    assert pool.reserve(0, 3, spare=2)
    assert not pool.reserve(1, 1, spare=2)
    assert pool.held[1] == []
    assert pool.reserve(1, 1, spare=1)
    assert not pool.reserve(1, 2, spare=1)
    assert pool.reserve(1, 2)


@settings(max_examples=150, deadline=None)
@given(STEPS)
def test_any_order_of_steps_keeps_every_text(steps):
    """Against a model that knows each row's keys and, of a prompt's, its tokens."""
    cache = make(4, cache_tokens=8 * PAGE)
    pool, texts, waiting = cache.pool, {}, {}  # texts: row -> its keys; the prompt's value is in its tokens' keys
    for step, row, other, blocks in steps:
        prompt = prompt_of(*blocks)
        holds = row in texts
        if step in ("reserve", "share", "remember") and not holds and row not in waiting:
            shared = cache.share(row, prompt) if step != "reserve" else 0
            before = [list(held) for held in pool.held]
            if not cache.reserve(row, len(prompt)):
                assert pool.held == before
                assert pool.available < len(blocks) + 1 - shared // PAGE
                cache.free(row)
                continue
            begin = read(cache, row, shared)
            text = torch.cat((begin, write(cache, row, len(prompt) - shared, shared)), -2)
            for block, number in enumerate(blocks[: shared // PAGE]):
                assert (begin[..., block * PAGE : (block + 1) * PAGE, 0] == number).all()
            if step == "remember":
                marked = torch.tensor(prompt, device=DEVICE)[shared:].float()
                for keys in cache.keys, cache.values:
                    at = torch.tensor(pool.held[row], device=DEVICE)
                    for place in range(shared, len(prompt)):
                        keys[:, at[place // PAGE], :, place % PAGE, 0] = float(prompt[place])
                text[..., shared:, 0] = marked
                cache.remember(row, prompt)
            texts[row] = text
        elif step == "free" and holds:
            cache.free(row)
            del texts[row]
        elif step == "move" and holds and other not in texts and other not in waiting:
            cache.move(row, other, texts[row].shape[-2])
            texts[other] = texts.pop(row)
        elif step == "swap" and holds:
            waiting[row] = cache.swap_out(row), texts.pop(row)
        elif step == "swap" and row in waiting:
            if cache.swap_in(row, waiting[row][0]):
                texts[row] = waiting.pop(row)[1]
        elif step == "grow" and holds:
            length = texts[row].shape[-2]
            if cache.reserve(row, min(length + 30, 4 * PAGE)):
                added = write(cache, row, min(30, 4 * PAGE - length), length)
                texts[row] = torch.cat((texts[row], added), -2)
        users = [page for held in pool.held for page in held]
        assert [pool._users[page] for page in range(len(pool._users))] == [users.count(p) for p in range(9)]
        everyone = [*pool._free, *pool._idle, *set(users)]
        assert sorted(everyone) == list(range(1, 9))  # each once, and the first is nobody's
        assert all(page in pool._prefixes for page in pool._idle)
        assert not any(page in pool._prefixes for page in pool._free)
        for one, text in texts.items():
            assert torch.equal(read(cache, one, text.shape[-2]), text)
            assert cache.length[one] == text.shape[-2]
