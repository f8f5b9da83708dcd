"""The static cache: writes at device positions, compaction of a path."""

import torch

from radar.target.cache import StaticKVCache


def make(batch=2):
    return StaticKVCache(
        num_layers=3,
        batch_size=batch,
        num_kv_heads=2,
        capacity=20,
        head_dim=4,
        dtype=torch.float32,
        device=torch.device("cpu"),
    )


def test_write_puts_rows_where_each_batch_row_says():
    cache = make()
    rows = torch.randn(2, 2, 5, 4)
    cache.write(1, rows, rows + 1, torch.tensor([0, 7]))
    keys, values = cache.rows(1)
    assert torch.equal(keys[0, :, :5], rows[0])
    assert torch.equal(keys[1, :, 7:12], rows[1])
    assert torch.equal(values[1, :, 7:12], rows[1] + 1)
    assert not keys[1, :, :7].any()
    assert not cache.keys[0].any()
    assert cache.length.tolist() == [0, 0]


def test_commit_keeps_the_path_in_order():
    cache = make()
    cache.length.copy_(torch.tensor([2, 3]))
    cache.keys.copy_(torch.arange(20.0)[:, None].expand_as(cache.keys))
    cache.values.copy_(-cache.keys)
    path = torch.tensor([[0, 2, 5, 0], [0, 1, 4, 9]])
    cache.commit(path, torch.tensor([3, 4]))
    assert cache.length.tolist() == [5, 7]
    for layer in range(3):
        assert cache.keys[layer, 0, 0, :5, 0].tolist() == [0, 1, 2, 4, 7]
        assert cache.keys[layer, 1, 1, :7, 0].tolist() == [0, 1, 2, 3, 4, 7, 12]
        assert cache.values[layer, 1, 0, :7, 3].tolist() == [0, -1, -2, -3, -4, -7, -12]
