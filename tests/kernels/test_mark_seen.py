"""mark_seen: bits of the tokens that count, once."""

import pytest
import torch

from radar_kernels import mark_seen
from radar_kernels.sample_tokens import NO_TOKEN


def marked(seen):
    bits = ((seen[..., None] >> torch.arange(32, device=seen.device)) & 1).flatten(1)
    return [row.nonzero().flatten().tolist() for row in bits]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_marks_count_once_and_only_as_far_as_they_count(backend, device):
    seen = torch.zeros(3, 4, dtype=torch.int32, device=device)
    tokens = torch.tensor([[31, 31, 64, 7], [0, 1, 127, 127], [5, 5, 5, -1]], device=device)
    count = torch.tensor([3, 4, 0], device=device)
    for _ in range(2):  # what is marked stays marked
        mark_seen(seen, tokens, count, backend=backend)
        assert marked(seen) == [[31, 64], [0, 1, 127], []]
    mark_seen(seen, tokens[:, :2] + 1, torch.full_like(count, 2), backend=backend)
    assert marked(seen) == [[31, 32, 64], [0, 1, 2, 127], [6]]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_long_prompt_is_marked(backend, device):
    tokens = torch.randint(0, 1000, (2, 700), device=device)
    seen = torch.zeros(2, 32, dtype=torch.int32, device=device)
    mark_seen(seen, tokens, torch.tensor([700, 300], device=device), backend=backend)
    assert marked(seen) == [sorted(set(tokens[0].tolist())), sorted(set(tokens[1, :300].tolist()))]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_what_is_no_token_is_skipped(backend, device):
    """In front of the first row lies memory that is not the history's: the guard would kill the interpreter."""
    seen = torch.zeros(2, 4, dtype=torch.int32, device=device)
    tokens = torch.tensor([[NO_TOKEN, 3, 4], [5, NO_TOKEN, 6]], device=device)
    mark_seen(seen, tokens, torch.tensor([3, 2], device=device), backend=backend)
    assert marked(seen) == [[3, 4], [5]]


def test_the_operator_is_registered_correctly(device):
    seen, tokens = torch.zeros(1, 10, dtype=torch.int32, device=device), torch.arange(3, device=device)[None]
    arguments = seen, tokens, torch.tensor([2], device=device)
    torch.library.opcheck(torch.ops.radar_kernels.mark_seen.default, arguments)


def test_marking_errors_say_what_was_expected():
    seen, tokens, count = torch.zeros(1, 4).int(), torch.zeros(1, 2).long(), torch.zeros(1).long()
    for message, arguments in {
        "tokens must be int64": (seen, tokens.int(), count),
        r"seen must be contiguous int32 \[1, W\]": (seen.long(), tokens, count),
        r"count must be int64 \[1\]": (seen, tokens, count.int()),
    }.items():
        with pytest.raises(ValueError, match=f"mark_seen: {message}"):
            mark_seen(*arguments)
