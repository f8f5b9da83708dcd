"""Six draft levels, from logits to the tree, against log_softmax, topk, scatters and gathers."""

import pytest
import torch
from tolerances import assert_close

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from bench.shapes import LLAMA_8B, QWEN3_8B, TINY
from radar_kernels import TreeBuffers, grow_tree, reference, reference_tree

K, CALLS, LEVELS = 10, 16, 6
DTYPE = torch.bfloat16 if ON_GPU else torch.float32
VOCABULARIES = [g.draft_vocabulary for g in (LLAMA_8B if ON_GPU else TINY,)]
VOCABULARIES += [LLAMA_8B.vocabulary, QWEN3_8B.vocabulary] if ON_GPU else []


def chain(logits: torch.Tensor, tree: TreeBuffers, *, first: bool, d2t: torch.Tensor) -> None:
    """As in EAGLE-3's own loop."""
    rows = torch.log_softmax(logits.float(), -1).topk(K, -1)
    candidates = rows.values if first else rows.values + tree.beam_scores[..., None]
    best = candidates.flatten(1).topk(K, -1)
    level = reference.TopkConfidence(candidates, rows.indices + d2t[rows.indices], best.values, best.indices)
    reference_tree.add_level(level, tree, first=first)


def make(vocabulary: int, device: torch.device, dtype: torch.dtype = DTYPE) -> tuple[object, ...]:
    slots = K + (CALLS - 1) * K * K

    def integers(*shape: int) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int64, device=device)

    tree = TreeBuffers(
        torch.zeros(1, slots, device=device), integers(1, slots), integers(1, slots),
        torch.zeros(1, K, device=device), integers(1, K), integers(1, K), integers(1, K), integers(1, K, 3),
        integers(1),
    )  # fmt: skip
    rows = (1, *(LEVELS - 1) * [K])
    return tree, [(3 * torch.randn(1, n, vocabulary, device=device)).to(dtype) for n in rows], integers(vocabulary)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("vocabulary", VOCABULARIES)
def test_grow_tree(vocabulary, implementation, device, bench_kernel):
    op = implementation_of(implementation, grow_tree, chain)

    def call(tree: TreeBuffers, levels: list[torch.Tensor], d2t: torch.Tensor) -> None:
        for i, logits in enumerate(levels):
            op(logits, tree, first=i == 0, d2t=d2t)

    inputs = [make(vocabulary, device) for _ in range(4)]  # the logits were just written: they are in the cache
    tree, levels, d2t = make(vocabulary, device, torch.float32)  # in 16 bits scores tie, which topk breaks otherwise
    twin = TreeBuffers(*(tensor.clone() for tensor in tree))
    call(tree, levels, d2t)
    for i, logits in enumerate(levels):
        reference_tree.grow_tree(logits, twin, first=i == 0)
    assert all(torch.equal(getattr(tree, name), getattr(twin, name)) for name in ("tokens", "beam_tokens", "calls"))
    assert_close(tree.beam_scores, twin.beam_scores, "grow_tree", torch.float32)
    bench_kernel(call, inputs, bytes_moved=sum(logits.nbytes for logits in levels))
