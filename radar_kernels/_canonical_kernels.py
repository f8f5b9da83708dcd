"""The two kernels of canonical attention: what all rows share of the text, and each row's own end of its path, with all
of it put together.

Every float is rounded as it is written: without fused multiply-adds (`enable_fp_fusion=False`), sums by products alone,
whose order is that of their keys, and maxima, which have none. So a block of keys does the same to a row in each.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = ["path_kernel", "prefix_kernel"]

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
    stride_pb, stride_pn, stride_tb, longest, nodes, capacity, kv_heads, rows, chunks, starts_ptr,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGED: tl.constexpr,
    ALIKE: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """State of each row over the whole blocks of one chunk below the text's end, joined from left to right.

    Row r of a program is node r // GROUP under head r % GROUP of one key-value head. With ALIKE a text's nodes are
    those of `starts`, one behind another in the batch.
    """
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    if ALIKE:
        text = batch
        batch = tl.load(starts_ptr + text).to(tl.int64)
        nodes = tl.load(starts_ptr + text + 1) - batch.to(tl.int32)
        if tl.program_id(0) * ROWS >= nodes * GROUP:
            return
        stride_qn = stride_qb
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
        seen = tl.load(seen_ptr + (batch if ALIKE else batch * nodes) + node, mask=real, other=0)
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

    first_node = batch if ALIKE else batch * nodes
    out = first_node * (kv_heads * GROUP) + node * (kv_heads * GROUP) + kv_head * GROUP + r % GROUP
    _store(peak_ptr, total_ptr, mixed_ptr, chunk * rows + out, real, d, peak, total, mixed, DIM)


@jit
def _finish(
    peak_ptr, total_ptr, mixed_ptr, sink_ptr, output_ptr, first_row, head, first_head, d, length, end, rows, chunks,
    GROUP: tl.constexpr, DIM: tl.constexpr, ROWS: tl.constexpr, DIM_PAD: tl.constexpr, KEYS: tl.constexpr,
    SINK: tl.constexpr,
):  # fmt: skip
    """o = the values under the whole softmax of a node's heads [ROWS, 1]: by chunks, each of its blocks, from left to
    right."""
    at, real = first_row + head, head < GROUP
    whole = length // KEYS * KEYS
    here = _chunk_of(whole)  # goes on behind the whole blocks
    peak = tl.full([ROWS, 1], LOWEST, tl.float32)
    total = tl.zeros([ROWS, 1], tl.float32)
    mixed = tl.zeros([ROWS, DIM_PAD], tl.float32)
    for chunk in tl.range(0, here, 4, num_stages=1):  # four on their way at a time
        at_0 = chunk * rows + at
        at_1, at_2, at_3 = at_0 + rows, at_0 + 2 * rows, at_0 + 3 * rows
        one = _load(peak_ptr, total_ptr, mixed_ptr, at_0, real, d, DIM)
        two = _load(peak_ptr, total_ptr, mixed_ptr, at_1, head < tl.where(chunk + 1 < here, GROUP, 0), d, DIM)
        three = _load(peak_ptr, total_ptr, mixed_ptr, at_2, head < tl.where(chunk + 2 < here, GROUP, 0), d, DIM)
        four = _load(peak_ptr, total_ptr, mixed_ptr, at_3, head < tl.where(chunk + 3 < here, GROUP, 0), d, DIM)
        peak, total, mixed = _join(peak, total, mixed, one[0], one[1], one[2])
        peak, total, mixed = _join(peak, total, mixed, two[0], two[1], two[2])
        peak, total, mixed = _join(peak, total, mixed, three[0], three[1], three[2])
        peak, total, mixed = _join(peak, total, mixed, four[0], four[1], four[2])

    begun = head < tl.where(whole > _chunk_start(here), GROUP, 0)
    last_peak, last_total, last_mixed = _load(peak_ptr, total_ptr, mixed_ptr, here * rows + at, begun, d, DIM)
    for start in tl.range(whole, end, KEYS, num_stages=1):
        state = _load(peak_ptr, total_ptr, mixed_ptr, (chunks + (start - whole) // KEYS) * rows + at, real, d, DIM)
        chunk = _chunk_of(start)
        if chunk > here:
            peak, total, mixed = _join(peak, total, mixed, last_peak, last_total, last_mixed)
            last_peak, last_total, last_mixed = state[0], state[1], state[2]
            here = chunk
        else:
            last_peak, last_total, last_mixed = _join(last_peak, last_total, last_mixed, state[0], state[1], state[2])
    peak, total, mixed = _join(peak, total, mixed, last_peak, last_total, last_mixed)
    if SINK:
        sink = tl.load(sink_ptr + first_head + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
        some = total > 0.0
        rest = tl.where(some, 1.0, 0.0)
        peak, total, mixed = _join(peak, total, mixed, tl.where(some, sink, LOWEST), rest, tl.zeros_like(mixed))
    mixed = mixed / tl.where(total > 0.0, total, 1.0)
    tl.store(output_ptr + at * DIM + d, mixed.to(output_ptr.dtype.element_ty), mask=real & (d < DIM))


@jit
def path_kernel(
    query_ptr, key_ptr, value_ptr, length_ptr, columns_ptr, seen_ptr, table_ptr, peak_ptr, total_ptr, mixed_ptr,
    scale, softcap, window,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_pb, stride_pn, stride_tb, longest, nodes, capacity, kv_heads, rows, chunks, sink_ptr, output_ptr,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr, JOINED: tl.constexpr,
    KEYS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGED: tl.constexpr, SINK: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """A node's rows under one key-value head: their state over each block of the node's path behind the text's whole
    blocks, its keys gathered in the order of their positions, and then all states together.

    It runs beside `prefix_kernel`, whose programs have waited, when all have begun, for what came before, and joins
    behind it.
    """
    node = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    length = tl.minimum(tl.load(length_ptr + batch), capacity).to(tl.int32)
    end = length + tl.load(seen_ptr + batch * nodes + node)  # of the path
    whole = length // KEYS * KEYS
    head = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = head < GROUP
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    at = node.to(tl.int64) * stride_qn + (kv_head * GROUP + head)[:, None] * stride_qh + d[None, :]
    q = tl.load(query_ptr + batch * stride_qb + at, mask=real[:, None] & in_dim[None, :], other=0.0)
    first_row = (batch * nodes + node) * (kv_heads * GROUP) + kv_head * GROUP

    for start in tl.range(whole, end, KEYS, num_stages=1):
        position = start + tl.arange(0, KEYS)
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
        block = chunks + (start - whole) // KEYS
        _store(peak_ptr, total_ptr, mixed_ptr, block * rows + first_row + head, real, d, peak, total, mixed, DIM)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    tl.debug_barrier()  # what the program's other threads stored
    few = tl.program_id(2) * ROWS + tl.arange(0, JOINED)[:, None]
    for some in tl.range(0, tl.minimum(ROWS, GROUP), JOINED, num_stages=1):
        _finish(
            peak_ptr, total_ptr, mixed_ptr, sink_ptr, output_ptr, first_row, few + some, kv_head * GROUP, d[None, :],
            length, end, rows, chunks, GROUP, DIM, JOINED, DIM_PAD, KEYS, SINK,
        )  # fmt: skip
