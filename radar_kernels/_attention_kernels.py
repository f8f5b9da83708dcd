"""The two kernels of tree attention: a slice of the keys for a tile of rows, and the slices put together."""

# mypy: allow-untyped-defs, allow-incomplete-defs

from radar_kernels._launch import jit, tl

__all__ = ["combine_kernel", "split_kernel"]


@jit
def _weigh(q, k, peak, total, scale, visible, MASKED: tl.constexpr):
    """The weights of one block of keys in the online softmax, in base 2, and what shrinks all before them."""
    s = tl.dot(q, k, input_precision="ieee") * scale
    if MASKED:
        s = tl.where(visible, s, -1.0e30)
    new_peak = tl.maximum(peak, tl.max(s, 1))
    shrink = tl.math.exp2(peak - new_peak)
    p = tl.math.exp2(s - new_peak[:, None])
    if MASKED:
        p = tl.where(visible, p, 0.0)
    total = total * shrink + tl.sum(p, 1)
    return p, shrink, new_peak, total


@jit
def _share(
    length, split, WORDS: tl.constexpr, SPLITS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr, COST: tl.constexpr
):  # fmt: skip
    """(whole blocks of the prefix; first and last block, first and last tail unit of this split).

    The prefix's whole blocks and, after them, the tail's units stand on a line, where a unit of the tail, which waits
    for its own keys, is as long as COST blocks. Equal parts of it are shared out; a unit belongs to where it begins.
    """
    blocks = length // KEYS
    tails = (length - blocks * KEYS + WORDS * 64 + TAIL - 1) // TAIL
    line = blocks + tails * COST
    low = split * line // SPLITS
    high = (split + 1) * line // SPLITS
    tail_first = (tl.maximum(low - blocks, 0) + COST - 1) // COST
    tail_last = (tl.maximum(high - blocks, 0) + COST - 1) // COST
    return blocks, tl.minimum(low, blocks), tl.minimum(high, blocks), tail_first, tail_last


@jit
def _word(ancestors, ancestors_w, real, w, WORDS: tl.constexpr):
    """Word w of the rows: all bits before the first, which is the prefix, and none behind the last."""
    word = tl.load(ancestors + tl.minimum(tl.maximum(w, 0), WORDS - 1) * ancestors_w, mask=real, other=0)
    return tl.where(w < 0, -1, tl.where(w < WORDS, word, 0)).to(tl.uint64)


@jit
def split_kernel(
    query, key, value, prefix_length, ancestors, output, partial, partial_lse, scale,
    query_b, query_h, query_n, key_b, key_h, key_s, value_b, value_h, value_s, ancestors_b, ancestors_n, ancestors_w,
    nodes, capacity, kv_heads, rows,
    WORDS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr,
    ROWS: tl.constexpr, KEYS: tl.constexpr, TAIL: tl.constexpr, COST: tl.constexpr, STAGES: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """o[n] = sum_j softmax_j(scale * q[n].k[j]) v[j] over j < L or bit (j - L) of ancestors[n], for one slice of j.

    Row r of a program is node r // GROUP under head r % GROUP of one key-value head, so a group reads its keys once.
    Whole blocks of KEYS prefix keys need no mask. What is left of the prefix and the tree behind it are one run of
    keys, taken TAIL at a time: 64 bits say which of them a row sees. With more than one split the slice's own softmax
    goes to `partial` [SPLITS, rows, DIM] together with its log-sum-exp, and `combine_kernel` joins them.
    """
    split = tl.program_id(0)
    batch = (tl.program_id(1) // kv_heads).to(tl.int64)  # int64: a cache can hold more than 2**31 elements
    kv_head = (tl.program_id(1) % kv_heads).to(tl.int64)
    key += batch * key_b + kv_head * key_h
    value += batch * value_b + kv_head * value_h
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    length = tl.minimum(tl.load(prefix_length + batch), capacity).to(tl.int32)
    blocks, first, last, tail_first, tail_last = _share(length, split, WORDS, SPLITS, KEYS, TAIL, COST)

    r = tl.program_id(2) * ROWS + tl.arange(0, ROWS)
    node = r // GROUP
    real = node < nodes
    d = tl.arange(0, DIM_PAD)
    in_dim = d < DIM
    query += batch * query_b + kv_head * GROUP * query_h
    at = node[:, None].to(tl.int64) * query_n + (r % GROUP)[:, None] * query_h + d[None, :]
    q = tl.load(query + at, mask=real[:, None] & in_dim[None, :], other=0.0)

    mixed = tl.zeros([ROWS, DIM_PAD], tl.float32)
    peak = tl.full([ROWS], -1.0e30, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    n = tl.arange(0, KEYS)
    k_block = key + (first * KEYS).to(tl.int64) * key_s
    v_block = value + (first * KEYS).to(tl.int64) * value_s
    k_offset = n[None, :] * key_s + d[:, None]
    v_offset = n[:, None] * value_s + d[None, :]
    for _ in tl.range(first, last, num_stages=STAGES):
        if DIM == DIM_PAD:
            k = tl.load(k_block + k_offset)
            v = tl.load(v_block + v_offset)
        else:
            k = tl.load(k_block + k_offset, mask=in_dim[:, None], other=0.0)
            v = tl.load(v_block + v_offset, mask=in_dim[None, :], other=0.0)
        p, shrink, peak, total = _weigh(q, k, peak, total, scale, real, False)
        mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")
        k_block += KEYS * key_s
        v_block += KEYS * value_s

    # The rows once more: kept through the loop above, they would spill. That no capacity is below 0 only we know
    r = (tl.program_id(2) + tl.minimum(capacity, 0)) * ROWS + tl.arange(0, ROWS)
    node = r // GROUP
    real = node < nodes
    ancestors += batch * ancestors_b + node * ancestors_n
    AHEAD: tl.constexpr = (KEYS + 63) // 64
    n = tl.arange(0, TAIL)
    k_offset = n[None, :] * key_s + d[:, None]
    v_offset = n[:, None] * value_s + d[None, :]
    for unit in tl.range(tail_first, tail_last, num_stages=1):
        start = blocks * KEYS + unit * TAIL
        column = start - length + 64 * AHEAD  # of the tree behind so many words for the prefix, which every row sees
        w, shift = column // 64 - AHEAD, (column % 64).to(tl.uint64)
        low = _word(ancestors, ancestors_w, real, w, WORDS)
        high = _word(ancestors, ancestors_w, real, w + 1, WORDS)
        window = (low >> shift) | ((high << 1) << (63 - shift))
        anybody = tl.reduce_or(window, 0)
        inside = n < capacity - start
        # 0 * NaN = NaN: a row that no node sees may hold anything, so it is not even read
        seen = ((anybody >> n.to(tl.uint64)) & 1 != 0) & inside
        k = tl.load(key + start.to(tl.int64) * key_s + k_offset, mask=inside[None, :] & in_dim[:, None], other=0.0)
        left, right = window.to(tl.int32), (window >> 32).to(tl.int32)
        visible = (tl.where(n[None, :] < 32, left[:, None], right[:, None]) >> (n % 32)[None, :]) & 1 != 0
        visible &= inside[None, :]
        p, shrink, peak, total = _weigh(q, k, peak, total, scale, visible, True)
        v = tl.load(value + start.to(tl.int64) * value_s + v_offset, mask=seen[:, None] & in_dim[None, :], other=0.0)
        mixed = tl.dot(p.to(v.dtype), v, mixed * shrink[:, None], input_precision="ieee")

    safe = tl.where(total > 0.0, total, 1.0)  # a row that sees nothing here keeps 0, and a log-sum-exp of -1e30
    mixed = mixed / safe[:, None]
    offset = node * (kv_heads * GROUP) + r % GROUP
    row = batch * nodes * (kv_heads * GROUP) + kv_head * GROUP
    at = offset[:, None] * DIM + d[None, :]
    if SPLITS == 1:
        tl.store(output + row * DIM + at, mixed.to(output.dtype.element_ty), mask=real[:, None] & in_dim[None, :])
    else:
        row += split.to(tl.int64) * rows
        tl.store(partial_lse + row + offset, peak + tl.math.log2(safe), mask=real)
        tl.store(partial + row * DIM + at, mixed.to(partial.dtype.element_ty), mask=real[:, None] & in_dim[None, :])


@jit
def combine_kernel(
    partial, partial_lse, output, rows,
    DIM: tl.constexpr, DIM_PAD: tl.constexpr, SPLITS: tl.constexpr, SPLITS_PAD: tl.constexpr, ROWS: tl.constexpr,
    PDL: tl.constexpr,
):  # fmt: skip
    """o = sum_s 2**(lse[s] - m) o[s] / sum_s 2**(lse[s] - m), m = max_s lse[s], for ROWS rows.

    The splits are the outermost dimension, so that one thread holds all of them and adds them up alone.
    """
    row = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    s = tl.arange(0, SPLITS_PAD)
    d = tl.arange(0, DIM_PAD)
    real = (s < SPLITS)[:, None] & (row < rows)[None, :]
    if PDL:
        tl.extra.cuda.gdc_wait()
        tl.extra.cuda.gdc_launch_dependents()
    at = s[:, None].to(tl.int64) * rows + row[None, :]
    lse = tl.load(partial_lse + at, mask=real, other=-float("inf"))
    part = tl.load(
        partial + at[:, :, None] * DIM + d[None, None, :], mask=real[:, :, None] & (d < DIM)[None, None, :], other=0.0
    )
    lse = tl.where((row < rows)[None, :], lse, 0.0)  # -inf - -inf = NaN
    weight = tl.math.exp2(lse - tl.max(lse, 0)[None, :])
    mixed = tl.sum(part.to(tl.float32) * weight[:, :, None], 0) / tl.sum(weight, 0)[:, None]
    output += row[:, None] * DIM + d[None, :]
    tl.store(output, mixed.to(output.dtype.element_ty), mask=(row < rows)[:, None] & (d < DIM)[None, :])
