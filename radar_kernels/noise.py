"""Noise of (seed, position, token) inside kernels: the integers of `reference_sampling.philox`, to the last bit."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import interpreting, jit, tl

__all__ = ["gumbel", "uniforms", "uniforms_of"]

INTERPRETED = tl.constexpr(interpreting())  # Triton's interpreter knows no assembly


@jit
def to_uniform(word):
    return tl.minimum(word.to(tl.float32) * 2.0**-32 + 2.0**-33, 1.0 - 2.0**-24)


@jit
def philox(counter, seed, position):
    """Four random words; one wide product gives both words that a multiplication of a round is asked for."""
    c0 = counter.to(tl.uint32)
    c1 = c0 * 0
    c2 = c1 + position.to(tl.uint32)
    c3 = c1 + (position >> 32).to(tl.uint32)
    k0 = seed.to(tl.uint32)
    k1 = (seed >> 32).to(tl.uint32)
    for _ in tl.static_range(10):
        a = c0.to(tl.uint64) * 0xD2511F53
        b = c2.to(tl.uint64) * 0xCD9E8D57
        c0 = (b >> 32).to(tl.uint32) ^ c1 ^ k0
        c1 = b.to(tl.uint32)
        c2 = (a >> 32).to(tl.uint32) ^ c3 ^ k1
        c3 = a.to(tl.uint32)
        k0 += 0x9E3779B9
        k1 += 0xBB67AE85
    return c0, c1, c2, c3


@jit
def uniforms(seed, position, start, BLOCK: tl.constexpr):
    """u(seed, position, token) of BLOCK tokens from `start`, a multiple of 4; one call of Philox makes four."""
    quad = start // 4 + tl.arange(0, BLOCK // 4)
    a, b, c, d = philox(quad, seed, position)
    return to_uniform(tl.join(tl.join(a, c), tl.join(b, d)).reshape([BLOCK]))


@jit
def uniforms_of(seed, position, token):
    """u(seed, position, token) of any tokens: one call of Philox each."""
    a, b, c, d = philox(token // 4, seed, position)
    lane = token % 4
    return to_uniform(tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d)))


@jit
def fast_log2(x):
    """One instruction, where `tl.log2` is twenty; off by 2**-22, absolutely between 1/2 and 2, else relatively."""
    if INTERPRETED:
        return tl.log2(x)
    return tl.inline_asm_elementwise("lg2.approx.ftz.f32 $0, $1;", "=f,f", [x], tl.float32, True, 1)


@jit
def gumbel(u):
    """-log(-log(1 - u)), within 3e-6. Around 1, which is where 1 - u lies for the noise that wins, a series takes the
    place of the fast logarithm."""
    LN2: tl.constexpr = 0.6931471805599453
    series = u * (1.0 + u * (1.0 / 2 + u * (1.0 / 3 + u * (1.0 / 4 + u * (1.0 / 5)))))
    return fast_log2(tl.where(u < 1.0 / 16, series, fast_log2(1.0 - u) * -LN2)) * -LN2
