"""store_rows and keep_rows: the references against loops over rows, the kernels against the references."""

import pytest
import torch

from radar_kernels import keep_rows, reference, store_rows

BACKENDS = ["triton", "torch"]
STORE = {
    "a tree": {"nodes": 60, "dim": 32},
    "one row": {"nodes": 1, "dim": 128},
    "odd dimension, batch 3": {"batch": 3, "nodes": 7, "dim": 24},
    "rows past a block": {"batch": 2, "nodes": 37, "dim": 128, "heads": 1},
    "a full cache": {"nodes": 80, "dim": 16},
}
KEEP = {
    "a round": {"rows": 17, "dim": 32},
    "batch 3, odd dimension": {"batch": 3, "rows": 6, "dim": 24},
    "one row": {"rows": 1, "dim": 16},
    "one layer, one head": {"batch": 2, "rows": 9, "dim": 128, "layers": 1, "heads": 1},
}
CAPACITY = 80


def caches(*shape, dtype, device):
    """Two caches, each a view in the middle of a larger buffer, and the buffers, whose other values may not change."""
    buffers = [torch.randn(*shape[:-2], shape[-2] + 5, shape[-1] + 8, device=device).to(dtype) for _ in range(2)]
    return [buffer[..., 3:-2, 8:] for buffer in buffers], buffers


def make_store(*, batch=1, heads=2, nodes=5, dim=16, dtype=torch.float32, device="cpu"):
    views, buffers = caches(batch, heads, CAPACITY, dim, dtype=dtype, device=device)
    rows = [torch.randn(batch, nodes, heads, dim, device=device).to(dtype).transpose(1, 2) for _ in range(2)]
    return views, buffers, rows, torch.randint(0, CAPACITY - nodes + 1, (batch,), device=device)


def make_keep(*, batch=1, layers=3, heads=2, rows=4, dim=16, dtype=torch.float32, device="cpu"):
    views, buffers = caches(layers, batch, heads, CAPACITY, dim, dtype=dtype, device=device)
    path = torch.stack([torch.randperm(40, device=device)[:rows].sort().values for _ in range(batch)])
    path[:, 0] = 0
    count = torch.randint(1, rows + 1, (batch,), device=device)
    path.masked_fill_(torch.arange(rows, device=device) >= count[:, None], 0)  # as `accept_nodes` leaves it
    return views, buffers, torch.randint(0, CAPACITY - 40, (batch,), device=device), path, count


@pytest.mark.parametrize("shape", STORE.values(), ids=STORE.keys())
@pytest.mark.parametrize("backend", BACKENDS)
def test_store_rows_writes_these_rows_and_no_others(shape, backend, kernel_dtype, device):
    views, buffers, (key, value), start = make_store(**shape, dtype=kernel_dtype, device=device)
    expected = [buffer.clone() for buffer in buffers]
    for buffer, rows in zip(expected, (key, value), strict=True):
        for b, first in enumerate(start.tolist()):
            buffer[b, :, 3 + first : 3 + first + key.shape[2], 8:] = rows[b]
    assert store_rows(*views, key, value, start, backend=backend) is None
    assert all(torch.equal(a, b) for a, b in zip(buffers, expected, strict=True))


@pytest.mark.parametrize("backend", BACKENDS)
def test_store_rows_reads_any_strides(backend, device):
    views, buffers, (key, value), start = make_store(batch=2, device=device)
    spread = [torch.stack((x, x + 1), -1)[..., 0] for x in (key, value)]
    store_rows(*views, *spread, start, backend=backend)
    got = [buffer.clone() for buffer in buffers]
    store_rows(*views, key.contiguous(), value.contiguous(), start, backend=backend)
    assert all(torch.equal(a, b) for a, b in zip(got, buffers, strict=True))
    assert torch.equal(views[1][1, :, start[1] : start[1] + 5], value[1])


def test_store_rows_never_writes_outside_the_cache(device):
    """Two of five rows would lie behind the cache, where the larger buffer goes on."""
    views, buffers, (key, value), _ = make_store(nodes=5, device=device)
    expected = [buffer.clone() for buffer in buffers]
    for buffer, rows in zip(expected, (key, value), strict=True):
        buffer[:, :, CAPACITY : CAPACITY + 3, 8:] = rows[:, :, :3]
    store_rows(*views, key, value, torch.tensor([CAPACITY - 3], device=device), backend="triton")
    assert all(torch.equal(a, b) for a, b in zip(buffers, expected, strict=True))


@pytest.mark.parametrize("shape", KEEP.values(), ids=KEEP.keys())
@pytest.mark.parametrize("backend", BACKENDS)
def test_keep_rows_moves_these_rows_and_no_others(shape, backend, kernel_dtype, device):
    views, buffers, length, path, count = make_keep(**shape, dtype=kernel_dtype, device=device)
    before = [buffer.clone() for buffer in buffers]
    expected = [buffer.clone() for buffer in buffers]
    for old, new in zip(before, expected, strict=True):
        for b, (first, kept) in enumerate(zip(length.tolist(), count.tolist(), strict=True)):
            for i, node in enumerate(path[b, :kept].tolist()):
                new[:, b, :, 3 + first + i, 8:] = old[:, b, :, 3 + first + node, 8:]
    lengths = length.clone()
    assert keep_rows(*views, length, path, count, backend=backend) is None
    assert all(torch.equal(a, b) for a, b in zip(buffers, expected, strict=True))
    assert torch.equal(length, lengths)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("path", "count"), [([0, 1, 2, 3], 4), ([0, 2, 3, 4], 4), ([0, 1, 3, 0], 3), ([0, 5, 6, 7], 0), ([0, 0, 0, 0], 1)]
)
def test_keep_rows_with_overlaps_and_at_the_end_of_the_cache(path, count, backend, device):
    """Rows that are sources and targets at once, rows that stay, and entries past `count` that would not fit."""
    views, _, *_ = make_keep(device=device)
    first = CAPACITY - 1 - max(path[:count], default=0)
    values = torch.arange(CAPACITY, device=device, dtype=torch.float32)
    for sign, view in zip((1, -1), views, strict=True):
        view.copy_((sign * values)[:, None].expand_as(view))
    keep_rows(*views, *(torch.tensor(x, device=device) for x in ([first], [path], [count])), backend=backend)
    expected = values.clone()
    for i in range(count):
        expected[first + i] = first + path[i]
    assert torch.equal(views[0], expected[:, None].expand_as(views[0]))
    assert torch.equal(views[1], -expected[:, None].expand_as(views[1]))


def test_cpu_runs_the_references(monkeypatch):
    monkeypatch.setattr(reference, "store_rows", lambda *args: "stored")
    monkeypatch.setattr(reference, "keep_rows", lambda *args: "kept")
    views, _, rows, start = make_store()
    assert store_rows(*views, *rows, start) == "stored"
    views, _, *rest = make_keep()
    assert keep_rows(*views, *rest) == "kept"


def test_the_operators_are_registered_correctly(device):
    def contiguous(tensors):
        return tuple(tensor.contiguous() for tensor in tensors)

    views, _, rows, start = make_store(batch=2, device=device)
    torch.library.opcheck(torch.ops.radar_kernels.store_rows.default, (*contiguous(views), *rows, start, None))
    views, _, *rest = make_keep(batch=2, device=device)
    torch.library.opcheck(torch.ops.radar_kernels.keep_rows.default, (*contiguous(views), *rest, None))


BAD_STORE = {
    r"both be \[B, KV, S, D\]": {"key_cache": torch.zeros(1, 2, 3)},
    "share one float dtype": {"value_cache": torch.zeros(1, 2, CAPACITY, 16).half()},
    "N from 1 to 80": {"value": torch.zeros(1, 2, 6, 16)},
    r"must be torch.float32, got torch.float16": {"key": torch.zeros(1, 2, 5, 16).half()},
    "start must be int64": {"start": torch.zeros(1, dtype=torch.int32)},
}
BAD_KEEP = {
    r"both be \[L, B, KV, S, D\]": {"key_cache": torch.zeros(1, 2, 3)},
    "length must be int64": {"length": torch.zeros(1)},
    "count must be int64": {"count": torch.zeros(2, dtype=torch.int64)},
    "A from 1 to 32": {"path": torch.zeros(1, 33, dtype=torch.int64)},
    r"path must be int64 \[1, 4\]": {"path": torch.zeros(2, 4, dtype=torch.int64)},
}


@pytest.mark.parametrize(("message", "change"), BAD_STORE.items(), ids=BAD_STORE.keys())
def test_store_rows_says_what_was_expected(message, change):
    views, _, rows, start = make_store()
    arguments = dict(zip(("key_cache", "value_cache", "key", "value", "start"), (*views, *rows, start), strict=True))
    with pytest.raises(ValueError, match=f"store_rows: .*{message}"):
        store_rows(**{**arguments, **change})


def test_the_kernel_needs_contiguous_rows(device):
    views, _, rows, start = make_store(device=device)
    spread = torch.zeros(*views[0].shape, 2, device=device)[..., 0]
    with pytest.raises(ValueError, match=r"store_rows: the last dimension of key_cache .* must be contiguous"):
        store_rows(spread, views[1], *rows, start, backend="triton")


@pytest.mark.parametrize(("message", "change"), BAD_KEEP.items(), ids=BAD_KEEP.keys())
def test_keep_rows_says_what_was_expected(message, change):
    views, _, *rest = make_keep()
    arguments = dict(zip(("key_cache", "value_cache", "length", "path", "count"), (*views, *rest), strict=True))
    with pytest.raises(ValueError, match=f"keep_rows: .*{message}"):
        keep_rows(**{**arguments, **change})
