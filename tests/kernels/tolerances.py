"""How far a result may be from the reference: RMS of the error over RMS of the reference. A reason for every row.

Integers are compared exactly, top-k results by the values gathered at the returned indices.
"""

import torch

TOLERANCES = {
    # float32: 24 bits; a few thousand additions in another order, exp2 instead of exp
    ("tree_attention", torch.float32): 2e-6,
    # float16: probabilities, partial results and the output are rounded to 11 bits (2**-12 each, RMS about 0.6 of it)
    ("tree_attention", torch.float16): 1e-3,
    # bfloat16: the same three roundings to 8 bits
    ("tree_attention", torch.bfloat16): 8e-3,
    # the reference in float32 against float64 arithmetic: accumulation order only
    ("tree_attention reference", torch.float32): 1e-6,
    # log-softmax is in float32 for every dtype of the logits: one exp-sum in another order, then two additions
    ("grow_tree", torch.float32): 1e-6,
    # float32 arithmetic for every dtype of the weights: dot products of at most 576 terms, tanh through the sigmoid
    ("lstm_step", torch.float32): 2e-6,
    # mean squares in float32 for every dtype; the norm, then its product with the weight are rounded (two roundings)
    ("rms_norm", torch.float32): 1e-6,
    ("rms_norm", torch.float16): 4e-4,
    ("rms_norm", torch.bfloat16): 3e-3,
    # the exponential and a quotient in float32; SiLU, then the product are rounded
    ("silu_mul", torch.float32): 1e-6,
    ("silu_mul", torch.float16): 4e-4,
    ("silu_mul", torch.bfloat16): 4e-3,  # two times 2**-9, where the rows are few numbers
    # with norms of the heads, whose mean is summed in another order than the reference's: few values round otherwise
    ("rotate_store", torch.float32): 1e-6,
    ("rotate_store", torch.float16): 2e-4,
    ("rotate_store", torch.bfloat16): 2e-3,
    # cuDNN's LSTM, a baseline of the benchmarks, adds up in an order of its own: 4.2e-6 seen on an H200
    ("lstm_step cuDNN", torch.float32): 1e-5,
}


def relative_error(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """RMS error over RMS reference; NaN if either holds one. Infinities must agree exactly and are then left out."""
    actual, expected = actual.double(), expected.double()
    if not torch.equal(actual.isinf() * actual.sign(), expected.isinf() * expected.sign()):
        return float("inf")
    actual, expected = actual.masked_fill(actual.isinf(), 0), expected.masked_fill(expected.isinf(), 0)
    return ((actual - expected).square().mean().sqrt() / expected.square().mean().sqrt().clamp(min=1e-30)).item()


def assert_close(actual: torch.Tensor, expected: torch.Tensor, name: str, dtype: torch.dtype) -> None:
    assert actual.shape == expected.shape, f"{name}: shape {tuple(actual.shape)}, expected {tuple(expected.shape)}"
    error, limit = relative_error(actual, expected), TOLERANCES[name, dtype]
    assert error <= limit, f"{name} {dtype}: relative RMS error {error:.2e} is over {limit:.0e}"
