"""The two kernels of canonical attention: what all rows share of the text, and each row's own end of its path.

Every float is rounded as it is written: without fused multiply-adds (`enable_fp_fusion=False`), sums by products alone,
whose order is that of their keys, and maxima, which have none. So a block of keys does the same to a row in both.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = ["path_kernel", "prefix_kernel"]

LOG2_E = tl.constexpr(1.4426950408889634)
LOWEST = tl.constexpr(-1.0e30)
PAGE = tl.constexpr(64)
# chunks of 256 tokens up to 4,096, of 1,024 up to 16,384, of 2,048 behind: `chunk_of` in canonical_attention.py
FINE, MIDDLE = tl.constexpr(4096), tl.constexpr(16384)


@jit
def _chunk_of(position):
    coarse = 28 + (position - MIDDLE) // 2048
    middle = 16 + (position - FINE) // 1024
    return tl.where(position < FINE, position // 256, tl.where(position < MIDDLE, middle, coarse))


@jit
def _chunk_start(chunk):
    coarse = MIDDLE + (chunk - 28) * 2048
    return tl.where(chunk < 16, chunk * 256, tl.where(chunk < 28, FINE + (chunk - 16) * 1024, coarse))


@jit
def _attend(q, k, v, visible, peak, total, mixed, scale, softcap, SOFTCAP: tl.constexpr, MASKED: tl.constexpr):
    """One block of keys in the online softmax, in base 2; a block of which a row sees nothing changes nothing."""
    s = tl.dot(q, k, input_precision="ieee") * scale
    if SOFTCAP:
        e = tl.math.exp2(tl.abs(s) * (-2.0 * LOG2_E))
        tanh = (1.0 - e) / (1.0 + e)
        s = tl.where(s < 0.0, -tanh, tanh) * softcap
    if MASKED:
        s = tl.where(visible, s, LOWEST)
    new_peak = tl.maximum(peak, tl.max(s, 1))
    shrink = tl.math.exp2(peak - new_peak)
    p = tl.math.exp2(s - new_peak[:, None])
    if MASKED:
        p = tl.where(visible, p, 0.0)
    p = p.to(v.dtype)
    ones = tl.full([v.shape[0], total.shape[1]], 1.0, v.dtype)
    total = tl.dot(p, ones, total * shrink[:, None], input_precision="ieee")
    mixed = tl.dot(p, v, mixed * shrink[:, None], input_precision="ieee")
    return new_peak, total, mixed


@jit
def _merge(peak, total, mixed, older_peak, older_total, older_mixed):
    """Join the chunk in front to those behind it."""
    new_peak = tl.maximum(peak, older_peak)
    mine, theirs = tl.math.exp2(peak - new_peak), tl.math.exp2(older_peak - new_peak)
    total = total * mine + older_total * theirs
    mixed = mixed * mine[:, None] + older_mixed * theirs[:, None]
    return new_peak, total, mixed


@jit
def _store(peak_ptr, total_ptr, mixed_ptr, at, real, d, peak, total, mixed, DIM: tl.constexpr):
    """A chunk's state of the rows `at`."""
    tl.store(peak_ptr + at, peak, mask=real)
    tl.store(total_ptr + at, tl.max(total, 1), mask=real)  # its columns are alike
    tl.store(mixed_ptr + at[:, None] * DIM + d[None, :], mixed, mask=real[:, None] & (d < DIM)[None, :])


@jit
def _load(peak_ptr, total_ptr, mixed_ptr, at, real, d, DIM: tl.constexpr):
    """What `_store` has stored; where not `real` the state of a row that has seen nothing."""
    peak = tl.load(peak_ptr + at, mask=real, other=LOWEST)
    total = tl.load(total_ptr + at, mask=real, other=0.0)
    mixed = tl.load(mixed_ptr + at[:, None] * DIM + d[None, :], mask=real[:, None] & (d < DIM)[None, :], other=0.0)
    return peak, total, mixed


@jit
def prefix_kernel(
    query_ptr, key_ptr, value_ptr, length_ptr, columns_ptr, seen_ptr, table_ptr, peak_ptr, total_ptr, mixed_ptr,
    scale, softcap, window,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_pb, stride_pn, stride_tb, longest, nodes, capacity, kv_heads, rows,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGED: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """State (m, l, o) of the online softmax of each row over the whole blocks of one chunk below the text's end.

    Row r of a program is node r // GROUP under head r % GROUP of one key-value head.
    """
    chunk = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.minimum(tl.load(length_ptr + batch), capacity).to(tl.int32)
    first = _chunk_start(chunk)
    last = tl.minimum(_chunk_start(chunk + 1), length // KEYS * KEYS)
    if first >= last:
        return
    r = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    node = r // GROUP
    real = node < nodes
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    at = node[:, None].to(tl.int64) * stride_qn + (kv_head * GROUP + r % GROUP)[:, None] * stride_qh + d[None, :]
    q = tl.load(query_ptr + batch * stride_qb + at, mask=real[:, None] & in_dim[None, :], other=0.0)
    if WINDOW:
        seen = tl.load(seen_ptr + batch * nodes + node, mask=real, other=0)
        oldest = length + seen - window  # the first position that a row sees

    key_ptr += kv_head * stride_kh
    value_ptr += kv_head * stride_vh
    n = tl.arange(0, KEYS)
    k_offset = n[None, :] * stride_ks + d[:, None]
    v_offset = n[:, None] * stride_vs + d[None, :]
    wide = batch * 0  # int64: a cache can hold more than 2**31 elements
    peak = tl.full([ROWS], LOWEST, tl.float32)
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
            peak, total, mixed = _attend(q, k, v, visible, peak, total, mixed, scale, softcap, SOFTCAP, True)
        else:
            peak, total, mixed = _attend(q, k, v, real, peak, total, mixed, scale, softcap, SOFTCAP, False)

    out = batch * nodes * (kv_heads * GROUP) + node * (kv_heads * GROUP) + kv_head * GROUP + r % GROUP
    _store(peak_ptr, total_ptr, mixed_ptr, chunk * rows + out, real, d, peak, total, mixed, DIM)


@jit
def path_kernel(
    query_ptr, key_ptr, value_ptr, length_ptr, columns_ptr, seen_ptr, table_ptr, peak_ptr, total_ptr, mixed_ptr,
    sink_ptr, output_ptr, scale, softcap, window,
    stride_qb, stride_qh, stride_qn, stride_kb, stride_kh, stride_ks, stride_vb, stride_vh, stride_vs,
    stride_pb, stride_pn, stride_tb, longest, nodes, capacity, kv_heads, rows,
    GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, ROWS: tl.constexpr,
    KEYS: tl.constexpr, STAGES: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, PAGED: tl.constexpr,
    SINK: tl.constexpr, PDL: tl.constexpr,
):  # fmt: skip
    """o[n] = sum_j softmax_j(q[n].k[j]) v[j] over node n's path: the chunks of the text, and behind its whole blocks
    the path's own keys, gathered in the order of their positions.

    A program is one node with the heads of one key-value head, ROWS of them at most.
    """
    node = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.minimum(tl.load(length_ptr + batch), capacity).to(tl.int32)
    head = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    real = head < GROUP
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    at = node.to(tl.int64) * stride_qn + (kv_head * GROUP + head)[:, None] * stride_qh + d[None, :]
    q = tl.load(query_ptr + batch * stride_qb + at, mask=real[:, None] & in_dim[None, :], other=0.0)
    out = batch * nodes * (kv_heads * GROUP) + node.to(tl.int64) * (kv_heads * GROUP) + kv_head * GROUP + head

    whole = length // KEYS * KEYS
    chunk = _chunk_of(whole)  # goes on behind the whole blocks
    begun = head < tl.where(whole > _chunk_start(chunk), GROUP, 0)
    peak, total, mixed = _load(peak_ptr, total_ptr, mixed_ptr, chunk * rows + out, begun, d, DIM)
    total = total[:, None] + tl.zeros([ROWS, 16], tl.float32)

    end = length + tl.load(seen_ptr + batch * nodes + node)  # of the path
    columns_ptr += batch * stride_pb + node.to(tl.int64) * stride_pn
    n = tl.arange(0, KEYS)
    key_ptr += kv_head * stride_kh
    value_ptr += kv_head * stride_vh
    for start in tl.range(whole, end, KEYS, num_stages=1):
        here = _chunk_of(start + whole * 0)
        if here > chunk:
            _store(peak_ptr, total_ptr, mixed_ptr, chunk * rows + out, real, d, peak, total, mixed, DIM)
            peak = tl.full([ROWS], LOWEST, tl.float32)
            total = tl.zeros([ROWS, 16], tl.float32)
            mixed = tl.zeros([ROWS, DIM_PAD], tl.float32)
            chunk = here
        position = start + n
        own = position - length  # place in the path's own part, negative in the text
        column = tl.load(columns_ptr + own, mask=(own >= 0) & (own < tl.minimum(end - length, longest)), other=0)
        row = tl.where(own < 0, position, length + column)
        visible = (position < end) & (row < capacity)
        if WINDOW:
            visible &= position >= end - window
        if PAGED:
            page = tl.load(table_ptr + batch * stride_tb + row // PAGE, mask=visible, other=0).to(tl.int64)
            row = row % PAGE
        else:
            page = tl.zeros([KEYS], tl.int64) + batch
        k_at, v_at = page * stride_kb + row.to(tl.int64) * stride_ks, page * stride_vb + row.to(tl.int64) * stride_vs
        k = tl.load(key_ptr + k_at[None, :] + d[:, None], mask=visible[None, :] & in_dim[:, None], other=0.0)
        v = tl.load(value_ptr + v_at[:, None] + d[None, :], mask=visible[:, None] & in_dim[None, :], other=0.0)
        peak, total, mixed = _attend(q, k, v, visible[None, :], peak, total, mixed, scale, softcap, SOFTCAP, True)

    tl.debug_barrier()  # a chunk that ended above is read again, maybe by other threads
    total = tl.max(total, 1)  # its columns are alike
    for i in tl.range(0, chunk, num_stages=1):
        state = (chunk - 1 - i) * rows + out
        older_peak, older_total, older_mixed = _load(peak_ptr, total_ptr, mixed_ptr, state, real, d, DIM)
        peak, total, mixed = _merge(peak, total, mixed, older_peak, older_total, older_mixed)
    if SINK:
        sink = tl.load(sink_ptr + kv_head * GROUP + head, mask=real, other=0.0).to(tl.float32) * LOG2_E
        some = total > 0.0
        peak, total, mixed = _merge(
            peak,
            total,
            mixed,
            tl.where(some, sink, LOWEST),
            tl.where(some, 1.0, 0.0),
            tl.zeros([ROWS, DIM_PAD], tl.float32),
        )
    mixed = mixed / tl.where(total > 0.0, total, 1.0)[:, None]
    at = out[:, None] * DIM + d[None, :]
    tl.store(output_ptr + at, mixed.to(output_ptr.dtype.element_ty), mask=real[:, None] & in_dim[None, :])
