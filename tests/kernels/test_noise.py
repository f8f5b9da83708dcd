"""The noise of sampling: published integers, and the kernel's against the reference's, to the last bit."""

import pytest
import torch

from radar_kernels import reference_sampling
from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms, uniforms_of

# the generator's published vectors: counter, key, output (kat_vectors of Random123)
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS, ids=["zero", "ones", "pi"])
def test_philox_gives_the_published_words(counter, key, expected):
    words = reference_sampling.philox(*(tuple(torch.tensor(word) for word in part) for part in (counter, key)))
    assert tuple(int(word) for word in words) == expected


@jit
def noise_kernel(seed, positions, block_u, token_u, block_g, COUNT: tl.constexpr):
    position = tl.load(positions)
    token = 64 + tl.arange(0, COUNT)
    u = uniforms(tl.load(seed), position, 64, COUNT)
    tl.store(block_u + tl.arange(0, COUNT), u)
    tl.store(token_u + tl.arange(0, COUNT), uniforms_of(tl.load(seed), position, token))
    tl.store(block_g + tl.arange(0, COUNT), gumbel(u))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, 2**63 - 1])
@pytest.mark.parametrize("position", [0, 5, 2**31 + 3, 2**40 + 1])
def test_uniforms_are_equal_to_the_last_bit(seed, position, device):
    seeds, positions = (torch.tensor([value], device=device) for value in (seed, position))
    out = [torch.empty(1024, device=device) for _ in range(3)]
    noise_kernel[(1,)](seeds, positions, *out, COUNT=1024)
    expected = reference_sampling.uniforms(seeds, positions[None], 64 + 1024)[0, 0, 64:]
    assert torch.equal(out[0], expected)
    assert torch.equal(out[1], expected)
    noise = reference_sampling.gumbel_noise(seeds, positions[None], 64 + 1024)[0, 0, 64:]
    torch.testing.assert_close(out[2], noise, rtol=1e-5, atol=1e-5)


def test_uniforms_lie_strictly_between_0_and_1(monkeypatch):
    for word, expected in ((0, 2.0**-33), (2**32 - 1, 1 - 2.0**-24)):
        monkeypatch.setattr(reference_sampling, "philox", lambda c, k, word=word: [torch.full((1, 1, 1), word)] * 4)
        u = reference_sampling.uniforms(torch.tensor([1]), torch.tensor([[1]]), 4)
        assert u.unique().tolist() == [expected]
        noise = reference_sampling.gumbel_noise(torch.tensor([1]), torch.tensor([[1]]), 4)
        assert noise.isfinite().all()


def test_noise_is_fine_grained_where_the_winners_come_from(device):
    """1 - u would have a step of 2**-24 near 1: a few of a million tokens would tie, and the first of them win."""
    u = reference_sampling.uniforms(torch.tensor([3]), torch.tensor([[9]]), 2**20)
    small = u[u < 2**-8]
    assert len(small) > 3500
    assert (small * 2**24 % 1 != 0).float().mean() > 0.9


def test_neighbours_in_every_coordinate_differ():
    u = reference_sampling.uniforms(torch.tensor([4, 5]), torch.tensor([[6, 7, 6 + 2**32]] * 2), 1000)
    assert len(u.flatten().unique()) > u.numel() - 10
