"""store_rows, keep_rows and rotate_store on pages: what a cache in one piece would hold, bit for bit."""

import pytest
import torch
from paged import PAGE, Paged

from radar_kernels import HeadNorms, keep_rows, rotate_store, store_rows

BACKENDS = ["triton", "torch"]
CAPACITY = 4 * PAGE
STORE = {  # rows; where they start in each sequence; pages it holds; pages that all share
    "across two pages": {"nodes": 20, "start": [50, 100], "held": [2, 2]},
    "one row at a page's end and start": {"nodes": 1, "start": [63, 64], "held": [1, 2]},
    "three pages at once, behind a shared one": {"nodes": 140, "start": [64, 70], "held": [4, 4], "shared": 1},
    "padding behind what is held": {"nodes": 40, "start": [60, 100], "held": [1, 2]},
    "a sequence that holds nothing": {"nodes": 5, "start": [0, 62], "held": [0, 3]},
}
KEEP = {
    "within a page": {"length": [70, 0], "held": [2, 1]},
    "across pages": {"length": [60, 50], "held": [2, 3]},
    "the last of a page and the first of the next": {"length": [63, 64], "held": [2, 2], "shared": 0},
    "behind shared pages": {"length": [128, 190], "held": [4, 4], "shared": 2},
}


def make(*lead, held, shared=0, dim=16, device):
    caches = [torch.randn(*lead, len(held), 2, CAPACITY, dim, device=device) for _ in range(2)]
    for cache in caches:
        cache[..., 1:, :, : shared * PAGE, :] = cache[..., :1, :, : shared * PAGE, :]
    return caches, Paged(*caches, held=held, shared=shared)


@pytest.mark.parametrize("shape", STORE.values(), ids=STORE.keys())
@pytest.mark.parametrize("backend", BACKENDS)
def test_store_rows(shape, backend, device):
    nodes, start = shape["nodes"], torch.tensor(shape["start"], device=device)
    caches, paged = make(held=shape["held"], shared=shape.get("shared", 0), device=device)
    key, value = torch.randn(2, len(start), nodes, 2, 16, device=device).transpose(2, 3)
    value[0, 1, 0, 3] = torch.inf
    store_rows(*caches, key, value, start, backend="torch")
    store_rows(*paged.pages, key, value, start, block_table=paged.table, backend=backend)
    for cache in (*caches, *paged.pages, *paged.before):
        cache.nan_to_num_(nan=7.0)  # a NaN equals nothing
    paged.assert_holds(*caches)


@pytest.mark.parametrize("shape", KEEP.values(), ids=KEEP.keys())
@pytest.mark.parametrize("backend", BACKENDS)
def test_keep_rows(shape, backend, device):
    """Sources and targets overlap: a row that moved before its place was read would be seen."""
    caches, paged = make(2, held=shape["held"], shared=shape.get("shared", 0), device=device)
    length = torch.tensor(shape["length"], device=device)
    path = torch.tensor([[0, 1, 3, 4, 5, 9, 0], [0, 2, 3, 4, 40, 0, 0]], device=device)
    count = torch.tensor([6, 5], device=device)
    keep_rows(*caches, length, path, count, backend="torch")
    keep_rows(*paged.pages, length, path, count, block_table=paged.table, backend=backend)
    paged.assert_holds(*caches)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_touched_for_sequences_without_pages(backend, device):
    caches, paged = make(2, held=[0, 0], device=device)
    path = torch.tensor([[0, 2, 3]] * 2, device=device)
    key = torch.randn(2, 2, 9, 16, device=device)
    start = torch.tensor([100, 250], device=device)
    layer = [pages[0] for pages in paged.pages]
    store_rows(*layer, key[:, :, :6], key[:, :, :6], start, block_table=paged.table, backend=backend)
    counts = torch.tensor([3, 0], device=device)
    keep_rows(*paged.pages, start, path, counts, block_table=paged.table, backend=backend)
    paged.assert_holds(*caches)


@pytest.mark.parametrize(
    ("start", "held", "norms"), [([62, 127], [2, 3], False), ([63, 70], [1, 2], False), ([64, 127], [2, 2], True)]
)
@pytest.mark.parametrize("backend", BACKENDS)
def test_rotate_store(start, held, norms, backend, device):
    """Across pages, into the one of nobody, and behind a shared one."""
    start, shared = torch.tensor(start, device=device), int(norms)
    caches, paged = make(held=held, shared=shared, device=device)
    parts = torch.randn(2, 3, 6 * 16, device=device).split([32, 32, 32], dim=-1)
    angles = torch.randn(2, 2, 3, 16, device=device)
    options = {"backend": backend, "norms": HeadNorms(*torch.randn(2, 16, device=device), 1e-6) if norms else None}
    expected = rotate_store(*parts, *angles, *caches, start, **options)
    found = rotate_store(*parts, *angles, *paged.pages, start, block_table=paged.table, **options)
    assert torch.equal(found, expected)
    paged.assert_holds(*caches)


def test_never_writes_behind_the_table(device):
    """Where another sequence's entries stand."""
    caches, paged = make(held=[4, 4], device=device)
    key = torch.randn(2, 2, 5, 16, device=device)
    start = torch.tensor([CAPACITY - 3, CAPACITY], device=device)
    store_rows(*paged.pages, key, key, start, block_table=paged.table, backend="triton")
    for cache in caches:
        cache[0, :, -3:] = key[0, :, :3]
    paged.assert_holds(*caches)
    if device.type == "cpu":
        with pytest.raises(RuntimeError, match="out of bounds"):
            store_rows(*paged.pages, key, key, start, block_table=paged.table, backend="torch")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"block_table": torch.zeros(2, 4, dtype=torch.int64)}, r"block_table must be int32 \[2, T\]"),
        ({"block_table": torch.zeros(2, dtype=torch.int32)}, r"block_table must be int32 \[2, T\]"),
        ({"key_cache": torch.zeros(9, 2, 32, 16)}, r"the cache must be pages \[.., KV, 64, D\]"),
        ({"start": torch.zeros(3, dtype=torch.int64)}, r"start must be int64 \[2\]"),
    ],
)
def test_wrong_tables_are_named(change, message):
    inputs = {
        "key_cache": torch.zeros(9, 2, 64, 16), "key": torch.zeros(2, 2, 5, 16), "value": torch.zeros(2, 2, 5, 16),
        "start": torch.zeros(2, dtype=torch.int64), "block_table": torch.zeros(2, 4, dtype=torch.int32),
    } | change  # fmt: skip
    with pytest.raises(ValueError, match=f"store_rows: .*{message}"):
        store_rows(value_cache=torch.zeros_like(inputs["key_cache"]), **inputs)
    if "block_table" in change:
        cache = torch.zeros(1, 9, 2, 64, 16)
        integers = [torch.zeros(2, dtype=torch.int64), torch.zeros(2, 3, dtype=torch.int64)]
        with pytest.raises(ValueError, match=f"keep_rows: .*{message}"):
            keep_rows(cache, cache, *integers, integers[0], block_table=change["block_table"])
