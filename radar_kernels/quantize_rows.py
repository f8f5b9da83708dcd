"""Weights of 8 bits, stored in the order in which the tensor cores of `skinny_linear` take them."""

import torch
from torch import Tensor

__all__ = ["LARGEST", "LINE", "quantize_rows", "stored_rows", "unpack_rows"]

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
LINE = 128  # columns that are stored together


def stored_rows(weight: Tensor) -> Tensor:
    """[N, K] with zeros up to whole lines of 128 columns, those of a line in the order of the threads that read them.

    A line is 8 products of 16 columns. Of each, thread q of 4 takes the columns 2q, 2q + 1, 2q + 8 and 2q + 9; what it
    takes of all 8 stands together, to be read at once.
    """
    n, k = weight.shape
    lines = -(-k // LINE)
    whole = weight.new_zeros(n, lines * LINE)
    whole[:, :k] = weight
    return whole.view(n, lines, 8, 2, 4, 2).permute(0, 1, 4, 2, 3, 5).reshape(n, lines * LINE)


def unpack_rows(weight: Tensor, k: int) -> Tensor:
    """The first `k` columns of `stored_rows`, in their own order."""
    n, lines = len(weight), weight.shape[1] // LINE
    return weight.view(n, lines, 4, 8, 2, 2).permute(0, 1, 3, 4, 2, 5).reshape(n, lines * LINE)[:, :k]


def quantize_rows(weight: Tensor, dtype: torch.dtype = torch.int8) -> tuple[Tensor, Tensor]:
    """An 8-bit weight for `skinny_linear`: every row is divided by what makes its largest value the dtype's.

    Args:
        weight: [N, K], floating.
        dtype: torch.int8, or torch.float8_e4m3fn.

    Returns:
        weight [N, K rounded up to 128] in `dtype`, rounded to nearest, as `stored_rows` says, and scale [N] float32.

    Raises:
        ValueError: no such dtype, or no matrix.
    """
    if weight.dim() != 2 or not weight.dtype.is_floating_point or dtype not in LARGEST:
        raise ValueError(
            f"quantize_rows: weight must be floating [N, K] and dtype one of {[*LARGEST]}, "
            f"got {weight.dtype} {tuple(weight.shape)} and {dtype}"
        )
    largest = weight.float().abs().amax(1)
    scale = torch.where(largest == 0, 1.0, largest / LARGEST[dtype])
    scaled = weight.float() / scale[:, None]
    # in float32: not every device copies 8-bit floats by index
    stored = stored_rows(scaled.round() if dtype == torch.int8 else scaled)
    return stored.to(dtype), scale
