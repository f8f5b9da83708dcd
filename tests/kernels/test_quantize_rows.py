"""Weights of 8 bits: what they stand for, and where each column is."""

import pytest
import torch

from radar_kernels import quantize_rows
from radar_kernels.quantize_rows import LARGEST, stored_rows, unpack_rows


@pytest.mark.parametrize("eight", [*LARGEST], ids=str)
def test_a_row_of_zeros_stays_one(eight):
    weight8, scale = quantize_rows(torch.tensor([[0.0, 0.0], [-3.0, 1.5]]), eight)
    assert not weight8[0].float().any()
    assert scale[0] == 1
    assert weight8.shape == (2, 128)
    assert weight8[1, 0].item() == -LARGEST[eight]
    with pytest.raises(ValueError, match="quantize_rows"):
        quantize_rows(torch.zeros(2, 2), torch.int32)


def test_columns_are_stored_as_threads_take_them():
    columns = torch.arange(200)[None]
    stored = stored_rows(columns)
    assert stored[0, :12].tolist() == [0, 1, 8, 9, 16, 17, 24, 25, 32, 33, 40, 41]
    assert stored[0, 32:36].tolist() == [2, 3, 10, 11]
    assert stored[0, 128:132].tolist() == [128, 129, 136, 137]
    assert torch.equal(unpack_rows(stored, 200), columns)
