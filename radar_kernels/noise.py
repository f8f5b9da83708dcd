"""Noise of (seed, position, token) inside kernels: the integers of `reference_sampling.philox`, to the last bit."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = ["gumbel", "uniforms", "uniforms_of"]


@jit
def to_uniform(word):
    return tl.minimum(word.to(tl.float32) * 2.0**-32 + 2.0**-33, 1.0 - 2.0**-24)


@jit
def uniforms(seed, position, start, BLOCK: tl.constexpr):
    """u(seed, position, token) of BLOCK tokens from `start`, a multiple of 4; one call of Philox makes four."""
    quad = start // 4 + tl.arange(0, BLOCK // 4)
    a, b, c, d = tl.philox(seed, quad, 0, position.to(tl.int32), (position >> 32).to(tl.int32))
    return to_uniform(tl.join(tl.join(a, c), tl.join(b, d)).reshape([BLOCK]))


@jit
def uniforms_of(seed, position, token):
    """u(seed, position, token) of any tokens: one call of Philox each."""
    a, b, c, d = tl.philox(seed, token // 4, 0, position.to(tl.int32), (position >> 32).to(tl.int32))
    lane = token % 4
    return to_uniform(tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d)))


@jit
def gumbel(u):
    """-log(-log(1 - u)). A GPU's fast log is off by 2**-22 around 1, which is where 1 - u lies for the noise that wins:
    there a series takes its place."""
    series = u * (1.0 + u * (1.0 / 2 + u * (1.0 / 3 + u * (1.0 / 4 + u * (1.0 / 5)))))
    return -tl.log(tl.where(u < 1.0 / 16, series, -tl.log(1.0 - u)))
