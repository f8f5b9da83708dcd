"""A cache in pages: which of them a row of a text stands in."""

# mypy: allow-untyped-defs, allow-incomplete-defs

import torch
from torch import Tensor

from radar_kernels._launch import jit, tl
from radar_kernels.reference_canonical import PAGE

__all__ = ["check_table", "place_of"]

_PAGE = tl.constexpr(PAGE)


@jit
def place_of(row, inside, batch, table_ptr, stride_tb, PAGED: tl.constexpr):
    """First index of the cache, and row there, of the rows of a sequence that are `inside`."""
    if PAGED:
        page = tl.load(table_ptr + batch * stride_tb + row // _PAGE, mask=inside, other=0).to(tl.int64)
        return page, row % _PAGE
    else:
        return batch, row


def check_table(op: str, block_table: Tensor, key_cache: Tensor, batch: int) -> None:
    """Raises ValueError unless a table of `batch` sequences fits pages [.., KV, PAGE, D]."""
    if block_table.dim() != 2 or len(block_table) != batch or block_table.dtype != torch.int32:
        raise ValueError(
            f"{op}: block_table must be int32 [{batch}, T], got {block_table.dtype} {tuple(block_table.shape)}"
        )
    if key_cache.shape[-2] != PAGE or block_table.stride(1) != 1:
        raise ValueError(
            f"{op}: with a block_table, whose rows are contiguous, the cache must be pages [.., KV, {PAGE}, D], got "
            f"{tuple(key_cache.shape)}"
        )
