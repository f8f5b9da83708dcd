"""The three kernels of canonical attention: what all rows share of the text, each row's own end of its path, and both
put together.

Every float is rounded as it is written: without fused multiply-adds (`enable_fp_fusion=False`), sums by products alone,
whose order is that of their keys, and maxima, which have none. So a block of keys does the same to a row in each.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = ["join_kernel", "path_kernel", "prefix_kernel"]

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
PAGE = tl.constexpr(64)
# chunks of S1 tokens up to FINE, of S2 up to MIDDLE, of S3 behind: `chunk_of` in canonical_attention.py
FINE, MIDDLE = tl.constexpr(4096), tl.constexpr(16384)
S1, S2, S3 = tl.constexpr(256), tl.constexpr(1024), tl.constexpr(2048)
N1, N2 = tl.constexpr(16), tl.constexpr(28)  # chunks in front of FINE and MIDDLE


@jit
def _chunk_of(position):
    coarse = N2 + (position - MIDDLE) // S3
    middle = N1 + (position - FINE) // S2
    return tl.where(position < FINE, position // S1, tl.where(position < MIDDLE, middle, coarse))


@jit
def _chunk_start(chunk):
    coarse = MIDDLE + (chunk - N2) * S3
    return tl.where(chunk < N1, chunk * S1, tl.where(chunk < N2, FINE + (chunk - N1) * S2, coarse))


@jit
def _weigh(q, k, v, visible, scale, softcap, SOFTCAP: tl.constexpr, MASKED: tl.constexpr):
    """A block of keys by itself, in base 2: peak [R, 1], sum of weights [R, 16], all alike, weighted values [R, D]."""
    s = tl.dot(q, k, input_precision="ieee") * scale
    if SOFTCAP:
        e = tl.math.exp2(tl.abs(s) * (-2.0 * LOG2_E))
        tanh = (1.0 - e) / (1.0 + e)
        s = tl.where(s < 0.0, -tanh, tanh) * softcap
    if MASKED:
        s = tl.where(visible, s, LOWEST)
    peak = tl.max(s, 1)[:, None]
    p = tl.math.exp2(s - peak)
    if MASKED:
        p = tl.where(visible, p, 0.0)
    p = p.to(v.dtype)
    ones = tl.full([v.shape[0], 16], 1.0, v.dtype)
    return peak, tl.dot(p, ones, input_precision="ieee"), tl.dot(p, v, input_precision="ieee")


@jit
def _join(peak, total, mixed, next_peak, next_total, next_mixed):
    """What stands in front, and what comes behind it; of what nothing is seen changes nothing."""
    new_peak = tl.maximum(peak, next_peak)
    mine, theirs = tl.math.exp2(peak - new_peak), tl.math.exp2(next_peak - new_peak)
    return new_peak, total * mine + next_total * theirs, mixed * mine + next_mixed * theirs


@jit
def _load(peak_ptr, total_ptr, mixed_ptr, at, real, d, DIM: tl.constexpr):
    """The state of rows `at` [R, 1]; where not `real` that of a row that has seen nothing."""
    peak = tl.load(peak_ptr + at, mask=real, other=LOWEST)
    total = tl.load(total_ptr + at, mask=real, other=0.0)
    mixed = tl.load(mixed_ptr + at * DIM + d, mask=real & (d < DIM), other=0.0)
    return peak, total, mixed


@jit
def _store(peak_ptr, total_ptr, mixed_ptr, at, real, d, peak, total, mixed, DIM: tl.constexpr):
    at, real, d = at[:, None], real[:, None], d[None, :]
    tl.store(peak_ptr + at, peak, mask=real)
    tl.store(total_ptr + at, tl.max(total, 1)[:, None], mask=real)  # its columns are alike
    tl.store(mixed_ptr + at * DIM + d, mixed, mask=real & (d < DIM))


@jit
def prefix_kernel(
    query_ptr, key_ptr, value_ptr, length_ptr, columns_ptr, seen_ptr, table_ptr, peak_ptr, total_ptr, mixed_ptr,
    scale, softcap, window,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_pb, stride_pn, stride_tb, longest, nodes, capacity, kv_heads, rows, chunks,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """State of each row over the whole blocks of one chunk below the text's end, joined from left to right.

    Row r of a program is node r // GROUP under head r % GROUP of one key-value head.
    """
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.minimum(tl.load(length_ptr + batch), capacity).to(tl.int32)
    whole = length // KEYS * KEYS
    chunk = _chunk_of(tl.maximum(whole - 1, 0)) - tl.program_id(2)  # long ones first, and last those with nothing to do
    if (chunk < 0) | (whole == 0):
        return
    first = _chunk_start(chunk)
    last = tl.minimum(_chunk_start(chunk + 1), whole)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    node = r // GROUP
    real = node < nodes
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    at = node[:, None].to(tl.int64) * stride_qn + (kv_head * GROUP + r % GROUP)[:, None] * stride_qh + d[None, :]
    q = tl.load(query_ptr + batch * stride_qb + at, mask=real[:, None] & in_dim[None, :], other=0.0)
    if WINDOW:
        seen = tl.load(seen_ptr + batch * nodes + node, mask=real, other=0)
        oldest = tl.where(real, length + seen - window, last)  # the first position that a row sees
        first = tl.maximum(first, tl.min(oldest, 0) // KEYS * KEYS)

    key_ptr += kv_head * stride_kh
    value_ptr += kv_head * stride_vh
    n = tl.arange(0, KEYS)
    k_offset = n[None, :] * stride_ks + d[:, None]
    v_offset = n[:, None] * stride_vs + d[None, :]
    wide = batch * 0  # int64: a cache can hold more than 2**31 elements
    peak = tl.full([ROWS, 1], LOWEST, tl.float32)
    total = tl.zeros([ROWS, 16], tl.float32)
    mixed = tl.zeros([ROWS, DIM_PAD], tl.float32)
    for start in tl.range(first, last, KEYS, num_stages=STAGES):
        page, row = batch, start + wide
        if PAGED:
            page = tl.load(table_ptr + batch * stride_tb + row // PAGE).to(tl.int64)
            row = row % PAGE
        k = tl.load(key_ptr + page * stride_kb + row * stride_ks + k_offset, mask=in_dim[:, None], other=0.0)
        v = tl.load(value_ptr + page * stride_vb + row * stride_vs + v_offset, mask=in_dim[None, :], other=0.0)
        if WINDOW:
            visible = (start + n)[None, :] >= oldest[:, None]
            block_peak, block_total, block_mixed = _weigh(q, k, v, visible, scale, softcap, SOFTCAP, True)
        else:
            block_peak, block_total, block_mixed = _weigh(q, k, v, real, scale, softcap, SOFTCAP, False)
        peak, total, mixed = _join(peak, total, mixed, block_peak, block_total, block_mixed)

    out = batch * nodes * (kv_heads * GROUP) + node * (kv_heads * GROUP) + kv_head * GROUP + r % GROUP
    _store(peak_ptr, total_ptr, mixed_ptr, chunk * rows + out, real, d, peak, total, mixed, DIM)


@jit
def path_kernel(
    query_ptr, key_ptr, value_ptr, length_ptr, columns_ptr, seen_ptr, table_ptr, peak_ptr, total_ptr, mixed_ptr,
    scale, softcap, window,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_pb, stride_pn, stride_tb, longest, nodes, capacity, kv_heads, rows, chunks,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr, TILES: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGED: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """State of one node's rows over one block of its path behind the text's whole blocks, its keys gathered in the
    order of their positions.

    It runs beside `prefix_kernel`, whose programs have waited, when all have begun, for what came before, and ends
    after it, so that what waits for this kernel has waited for both.
    """
    node = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    block = tl.program_id(2) // TILES
    length = tl.minimum(tl.load(length_ptr + batch), capacity).to(tl.int32)
    end = length + tl.load(seen_ptr + batch * nodes + node)  # of the path
    start = length // KEYS * KEYS + block * KEYS
    if (start >= end) & (block > 0):  # no wait: the node's first block has one, and `join_kernel` does not read this
        return
    position = start + tl.arange(0, KEYS)
    head = tl.program_id(2) % TILES * ROWS + tl.arange(0, ROWS)
    real = head < GROUP
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    at = node.to(tl.int64) * stride_qn + (kv_head * GROUP + head)[:, None] * stride_qh + d[None, :]
    q = tl.load(query_ptr + batch * stride_qb + at, mask=real[:, None] & in_dim[None, :], other=0.0)

    own = position - length  # place in the path's own part, negative in the text
    inside = (own >= 0) & (own < tl.minimum(end - length, longest))
    column = tl.load(columns_ptr + batch * stride_pb + node.to(tl.int64) * stride_pn + own, mask=inside, other=0)
    row = tl.where(own < 0, position, length + column)
    visible = (position < end) & (row < capacity)
    if WINDOW:
        visible &= position >= end - window
    if PAGED:
        page = tl.load(table_ptr + batch * stride_tb + row // PAGE, mask=visible, other=0).to(tl.int64)
        row = row % PAGE
    else:
        page = tl.zeros([KEYS], tl.int64) + batch
    k_at = page * stride_kb + kv_head * stride_kh + row.to(tl.int64) * stride_ks
    v_at = page * stride_vb + kv_head * stride_vh + row.to(tl.int64) * stride_vs
    k = tl.load(key_ptr + k_at[None, :] + d[:, None], mask=visible[None, :] & in_dim[:, None], other=0.0)
    v = tl.load(value_ptr + v_at[:, None] + d[None, :], mask=visible[:, None] & in_dim[None, :], other=0.0)
    peak, total, mixed = _weigh(q, k, v, visible[None, :], scale, softcap, SOFTCAP, True)
    out = batch * nodes * (kv_heads * GROUP) + node.to(tl.int64) * (kv_heads * GROUP) + kv_head * GROUP + head
    _store(peak_ptr, total_ptr, mixed_ptr, (chunks + block) * rows + out, real, d, peak, total, mixed, DIM)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()


@jit
def join_kernel(
    length_ptr, seen_ptr, peak_ptr, total_ptr, mixed_ptr, sink_ptr, output_ptr, capacity, heads, rows, all_rows, chunks,
    blocks,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr, KEYS: tl.constexpr, SINK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """o = the values under the whole softmax of ROWS rows: chunk by chunk, each from its blocks, from left to right."""
    batch = tl.program_id(1)
    r = tl.program_id(0) * ROWS + tl.arange(0, ROWS)[:, None]
    real = r < rows
    d = tl.arange(0, DIM_PAD)[None, :]
    at = batch.to(tl.int64) * rows + r
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.minimum(tl.load(length_ptr + batch), capacity).to(tl.int32)
    whole = length // KEYS * KEYS
    here = _chunk_of(whole)  # goes on behind the whole blocks
    peak = tl.full([ROWS, 1], LOWEST, tl.float32)
    total = tl.zeros([ROWS, 1], tl.float32)
    mixed = tl.zeros([ROWS, DIM_PAD], tl.float32)
    for chunk in tl.range(0, here, 4, num_stages=1):  # four on their way at a time
        at_0 = chunk * all_rows + at
        at_1, at_2, at_3 = at_0 + all_rows, at_0 + 2 * all_rows, at_0 + 3 * all_rows
        one = _load(peak_ptr, total_ptr, mixed_ptr, at_0, real, d, DIM)
        two = _load(peak_ptr, total_ptr, mixed_ptr, at_1, r < tl.where(chunk + 1 < here, rows, 0), d, DIM)
        three = _load(peak_ptr, total_ptr, mixed_ptr, at_2, r < tl.where(chunk + 2 < here, rows, 0), d, DIM)
        four = _load(peak_ptr, total_ptr, mixed_ptr, at_3, r < tl.where(chunk + 3 < here, rows, 0), d, DIM)
        peak, total, mixed = _join(peak, total, mixed, one[0], one[1], one[2])
        peak, total, mixed = _join(peak, total, mixed, two[0], two[1], two[2])
        peak, total, mixed = _join(peak, total, mixed, three[0], three[1], three[2])
        peak, total, mixed = _join(peak, total, mixed, four[0], four[1], four[2])

    end = length + tl.load(seen_ptr + batch * (rows // heads) + r // heads, mask=real, other=0)
    begun = r < tl.where(whole > _chunk_start(here), rows, 0)
    last_peak, last_total, last_mixed = _load(peak_ptr, total_ptr, mixed_ptr, here * all_rows + at, begun, d, DIM)
    for block in tl.range(0, blocks):
        start = whole + block * KEYS
        state = _load(peak_ptr, total_ptr, mixed_ptr, (chunks + block) * all_rows + at, real & (start < end), d, DIM)
        chunk = _chunk_of(start)
        if chunk > here:
            peak, total, mixed = _join(peak, total, mixed, last_peak, last_total, last_mixed)
            last_peak, last_total, last_mixed = state[0], state[1], state[2]
            here = chunk
        else:
            last_peak, last_total, last_mixed = _join(last_peak, last_total, last_mixed, state[0], state[1], state[2])
    peak, total, mixed = _join(peak, total, mixed, last_peak, last_total, last_mixed)
    if SINK:
        sink = tl.load(sink_ptr + r % heads, mask=real, other=0.0).to(tl.float32) * LOG2_E
        some = total > 0.0
        rest = tl.where(some, 1.0, 0.0)
        peak, total, mixed = _join(peak, total, mixed, tl.where(some, sink, LOWEST), rest, tl.zeros_like(mixed))
    mixed = mixed / tl.where(total > 0.0, total, 1.0)
    tl.store(output_ptr + at * DIM + d, mixed.to(output_ptr.dtype.element_ty), mask=real & (d < DIM))
