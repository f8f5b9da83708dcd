"""The kernels of `skinny_linear`: weights streamed through shared memory, parts of a sum added up, and a plain one."""

# mypy: allow-untyped-defs, allow-incomplete-defs, allow-untyped-decorators

from radar_kernels._launch import gl, gluon_jit, hopper, jit, load_tile, tl

__all__ = ["linear_kernel", "plain_kernel", "sum_kernel"]


@gluon_jit(do_not_specialize=["rows", "steps"])
def linear_kernel(
    x, weight, bias, scale, output, rows, n, steps,
    ROWS: gl.constexpr, BN: gl.constexpr, BK: gl.constexpr, STAGES: gl.constexpr, PARTS: gl.constexpr,
    NARROW: gl.constexpr, BIAS: gl.constexpr, PDL: gl.constexpr,
):  # fmt: skip
    """y^T = W x^T for BN of the N outputs and ROWS of the rows; of one of the PARTS of K.

    The copy engine fills a ring of STAGES tiles. Weights are nobody's output: the first of them are asked for before
    the kernel in front has ended. They stand where a matrix product has its many rows, so that no tensor core works for
    padding.
    """
    WARPS: gl.constexpr = gl.num_warps()
    SUM: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [WARPS, 1], [16, ROWS, 16])
    # each thread reads 32 columns of a row at once, those of its place in 8 products: `quantize_rows` put them there
    NEIGHBOURS: gl.constexpr = gl.DistributedLinearLayout(
        [[0, 1], [0, 2], [0, 4], [0, 8], [0, 16], [8, 0]] + ([[64, 0]] if BN == 128 else []),
        [[0, 32], [0, 64], [1, 0], [2, 0], [4, 0]], [[16, 0], [32, 0]], [], [BN, 128],
    )  # fmt: skip
    row = gl.program_id(0) * ROWS
    first = gl.program_id(1) * BN
    each = (steps + PARTS - 1) // PARTS  # tiles of a part
    begin = gl.program_id(2) * each
    count = gl.minimum(each, steps - begin)
    BYTES: gl.constexpr = (ROWS * x.dtype.primitive_bitwidth + BN * weight.dtype.primitive_bitwidth) * BK // 8
    w_ring = gl.allocate_shared_memory(weight.dtype, [STAGES, BN, BK], weight.layout)
    x_ring = gl.allocate_shared_memory(x.dtype, [STAGES, ROWS, BK], x.layout)
    ready = gl.allocate_shared_memory(gl.int64, [STAGES, 1], hopper.mbarrier.MBarrierLayout())
    for early in gl.static_range(STAGES):
        hopper.mbarrier.init(ready.index(early), count=1)
    for early in gl.static_range(STAGES):
        hopper.mbarrier.expect(ready.index(early), BYTES, pred=early < count)
        load_tile(weight, [first, (begin + early) * BK], ready.index(early), w_ring.index(early), pred=early < count)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    for early in gl.static_range(STAGES):
        load_tile(x, [row, (begin + early) * BK], ready.index(early), x_ring.index(early), pred=early < count)

    running = gl.zeros([BN, ROWS], gl.float32, SUM)
    if not NARROW:
        running = hopper.warpgroup_mma_init(running)
    for step in range(0, count):
        slot = step % STAGES
        hopper.mbarrier.wait(ready.index(slot), (step // STAGES) & 1)
        x_tile = x_ring.index(slot).permute((1, 0))
        if NARROW:  # by way of registers, which have to stay as they are until the products are done
            w_tile = w_ring.index(slot).load(NEIGHBOURS).to(x.dtype).reshape([BN, 4, 8, 2, 2])
            w_tile = w_tile.permute((0, 2, 3, 1, 4)).reshape([BN, BK])
            w_tile = gl.convert_layout(w_tile, gl.DotOperandLayout(0, SUM, 2))
            running = hopper.warpgroup_mma(w_tile, x_tile, running, is_async=False)
        else:
            running = hopper.warpgroup_mma(w_ring.index(slot), x_tile, running, is_async=True)
            acc = hopper.warpgroup_mma_wait(1, deps=(running,))
            running = hopper.warpgroup_mma_init(acc)
        # the step in front is done with its tiles
        ahead = step - 1 + STAGES
        free = ahead % STAGES
        more = (step > 0) & (ahead < count)
        hopper.mbarrier.expect(ready.index(free), BYTES, pred=more)
        load_tile(weight, [first, (begin + ahead) * BK], ready.index(free), w_ring.index(free), pred=more)
        load_tile(x, [row, (begin + ahead) * BK], ready.index(free), x_ring.index(free), pred=more)
    y = running if NARROW else hopper.warpgroup_mma_wait(0, deps=(running,))

    STORED: gl.constexpr = gl.BlockedLayout([8, 1], [BN // 8, 32 * 8 // BN], [1, WARPS], [0, 1])
    OUTPUTS: gl.constexpr = gl.SliceLayout(1, STORED)
    i = first + gl.arange(0, BN, OUTPUTS)
    m = row + gl.arange(0, ROWS, gl.SliceLayout(0, STORED))
    at = (gl.program_id(2) * rows + m)[None, :].to(gl.int64) * n + i[:, None]
    inside = (i < n)[:, None] & (m < rows)[None, :]
    if PARTS > 1:
        gl.store(output + at, gl.convert_layout(y, STORED), mask=inside)
    else:
        if NARROW:
            j = first + gl.arange(0, BN, gl.SliceLayout(1, SUM))
            y = y * gl.load(scale + j, mask=j < n, other=0.0)[:, None]
        if BIAS:
            j = first + gl.arange(0, BN, gl.SliceLayout(1, SUM))
            y = y + gl.load(bias + j, mask=j < n, other=0.0).to(gl.float32)[:, None]
        gl.store(output + at, gl.convert_layout(y.to(output.dtype.element_ty), STORED), mask=inside)


@jit
def sum_kernel(
    parts, bias, scale, output, size, n,
    PARTS: tl.constexpr, NARROW: tl.constexpr, BIAS: tl.constexpr, BLOCK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """output = (parts[0] + parts[1] + ...) * scale + bias, in this order."""
    at = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = at < size
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    y = tl.zeros([BLOCK], tl.float32)
    for part in tl.static_range(PARTS):
        y += tl.load(parts + part * size + at, mask=inside, other=0.0)
    if NARROW:
        y *= tl.load(scale + at % n, mask=inside, other=0.0)
    if BIAS:
        y += tl.load(bias + at % n, mask=inside, other=0.0).to(tl.float32)
    tl.store(output + at, y.to(output.dtype.element_ty), mask=inside)


@jit
def plain_kernel(
    x, weight, bias, scale, output, x_m, rows, n,
    K: tl.constexpr, ROWS: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, STAGES: tl.constexpr,
    NARROW: tl.constexpr, BIAS: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """y^T = W x^T for BN of the N outputs and ROWS of the rows, from the first column to the last, in Triton alone."""
    STORED: tl.constexpr = (K + 127) // 128 * 128 if NARROW else K  # columns of the weights
    first = tl.program_id(1) * BN  # programs of the same weights follow one another
    i = tl.arange(0, BN)
    m = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    k = tl.arange(0, BK)
    weight += first.to(tl.int64) * STORED  # int64: weights can hold more than 2**31 elements
    last = n - 1 - first
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    # outputs behind the last one are computed from its weights and not stored
    w_at = tl.minimum(i, last)[:, None] * STORED + k[None, :]
    x_at = m[None, :] * x_m
    real = (m < rows)[None, :]
    y = tl.zeros([BN, ROWS], tl.float32)
    for step in tl.range(0, (STORED + BK - 1) // BK, num_stages=STAGES):
        at = step * BK + k
        if NARROW:  # where `quantize_rows` puts 8 products of 16 columns
            at = at // 128 * 128 + at // 4 % 8 * 16 + at // 2 % 2 * 8 + at // 32 % 4 * 2 + at % 2
        if STORED == K and K % BK == 0:
            w = tl.load(weight + step * BK + w_at)
            x_t = tl.load(x + x_at + at[:, None], mask=real, other=0.0)
        else:  # both, because 0 * NaN = NaN
            w = tl.load(weight + step * BK + w_at, mask=(step * BK + k < STORED)[None, :], other=0.0)
            x_t = tl.load(x + x_at + at[:, None], mask=real & (at < K)[:, None], other=0.0)
        y = tl.dot(w.to(x_t.dtype), x_t, y)
    if NARROW:
        y *= tl.load(scale + first + tl.minimum(i, last))[:, None]
    if BIAS:
        y += tl.load(bias + first + tl.minimum(i, last)).to(tl.float32)[:, None]
    at = m[None, :] * n + (first + i)[:, None]
    tl.store(output + at, y.to(output.dtype.element_ty), mask=real & (i <= last)[:, None])
