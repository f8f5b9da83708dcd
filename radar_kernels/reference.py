"""The ops in plain PyTorch: the definition of correct, and what runs on a CPU.

Nothing here asks the host about a device value (no `.item()`, no boolean indexing): these can be captured too.
"""

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from radar_kernels.quantize_rows import unpack_rows
from radar_kernels.reference_canonical import PAGE

__all__ = [
    "LstmStep",
    "NodeChoice",
    "NodeWeights",
    "Parts",
    "PolicyWeights",
    "TopkConfidence",
    "batch_stop",
    "choose_nodes",
    "keep_rows",
    "lstm_step",
    "mass_stop",
    "skinny_linear",
    "store_rows",
    "topk_confidence",
    "tree_attention",
    "visible_keys",
]


class TopkConfidence(NamedTuple):
    """One draft level. Scores are cumulative log-probabilities."""

    candidate_scores: Tensor  # [B, R, k] float32, descending in every row
    candidate_tokens: Tensor  # [B, R, k] int64, ids of the target's vocabulary
    scores: Tensor  # [B, k] float32, descending: the beam
    indices: Tensor  # [B, k] int64 into the flattened R * k candidates


class PolicyWeights(NamedTuple):
    """LSTM(I -> H) and Linear(H + I -> M), ReLU, Linear(M -> 2), named after the modules `lstm`, `mlp.0`, `mlp.3`."""

    weight_ih: Tensor  # [4H, I], gates in the order i, f, g, o
    weight_hh: Tensor  # [4H, H]
    bias_ih: Tensor  # [4H]
    bias_hh: Tensor  # [4H]
    mlp0_weight: Tensor  # [M, H + I]
    mlp0_bias: Tensor  # [M]
    mlp3_weight: Tensor  # [2, M]
    mlp3_bias: Tensor  # [2]


class NodeWeights(NamedTuple):
    """Linear(H + I + S -> M), ReLU, Linear(M -> S), named after a Sequential's modules."""

    weight0: Tensor  # [M, H + I + S]
    bias0: Tensor  # [M]
    weight3: Tensor  # [S, M]
    bias3: Tensor  # [S]


class NodeChoice(NamedTuple):
    logits: Tensor  # [B, S] float32
    chosen: Tensor  # [B] int64


class LstmStep(NamedTuple):
    hidden: Tensor  # [B, H] float32
    cell: Tensor  # [B, H] float32
    logits: Tensor  # [B, 2] float32, action 0 = stop
    stop: Tensor  # [B] bool


class Parts(NamedTuple):
    """A product [..., N] of `dtype` that is still to be added up."""

    values: Tensor  # [P, ..., N] float32 or `dtype`, to be summed in this order, in float32
    scale: Tensor | None  # [N] float32, factor on the sum
    bias: Tensor | None  # [N], behind it
    dtype: torch.dtype

    def added(self) -> Tensor:
        total: Tensor = functools.reduce(torch.add, self.values.float())
        total = total if self.scale is None else total * self.scale
        return (total if self.bias is None else total + self.bias.float()).to(self.dtype)


def visible_keys(prefix_length: Tensor, ancestors: Tensor, capacity: int) -> Tensor:
    """Dense form of (prefix_length [B], ancestors [B, N, W]): bool [B, N, capacity], True where node n sees key j."""
    batch, nodes, words = ancestors.shape
    shifts = torch.arange(64, device=ancestors.device)
    bits = ((ancestors[..., None] >> shifts) & 1).bool().view(batch, nodes, words * 64)
    bits = torch.nn.functional.pad(bits, (1, 1))  # column 0: left of the tree, last column: right of it, both unseen
    column = torch.arange(capacity, device=ancestors.device) - prefix_length[:, None]  # [B, capacity]
    column = (column + 1).clamp(0, words * 64 + 1)
    return bits.gather(2, column[:, None].expand(batch, nodes, capacity)) | (column == 0)[:, None]


def tree_attention(
    query: Tensor, key: Tensor, value: Tensor, prefix_length: Tensor, ancestors: Tensor, *, scale: float | None = None
) -> Tensor:
    """Attention of tree nodes over a prefix and their ancestors; see `radar_kernels.tree_attention`."""
    batch, heads, nodes, dim = query.shape
    kv_heads, capacity = key.shape[1], key.shape[2]
    compute = torch.float64 if query.dtype == torch.float64 else torch.float32
    visible = visible_keys(prefix_length, ancestors, capacity)
    # 0 * NaN = NaN: a probability of zero does not hide what a cache row holds, so rows that nobody sees and rows that
    # are no numbers (see `store_rows`) are emptied, and who sees one of these gets NaN
    broken = key[..., 0].isnan()
    lost = (visible.to(compute) @ broken.mT.to(compute) > 0).mT.repeat_interleave(heads // kv_heads, 1)
    empty = (broken | ~visible.any(1)[:, None])[..., None]
    key, value = (cache.to(compute).masked_fill(empty, 0) for cache in (key, value))
    rows = query.to(compute).reshape(batch, kv_heads, -1, dim)  # the heads of a group one below the other
    mask = visible.repeat(1, heads // kv_heads, 1)[:, None]
    mixed = torch.nn.functional.scaled_dot_product_attention(rows, key, value, attn_mask=mask, scale=scale)
    blind = ~visible.any(2)[:, None, :, None]  # softmax over nothing: 0 or NaN, depending on the backend
    mixed = mixed.reshape(batch, heads, nodes, dim).masked_fill(blind, 0).masked_fill(lost[..., None], torch.nan)
    return mixed.transpose(1, 2).to(query.dtype).contiguous()


def _sort_keys(scores: Tensor) -> Tensor:
    """float32 [..., n] -> int64 keys that order like (score, lower index first), all different."""
    bits = scores.contiguous().view(torch.int32)
    ordered = (
        (bits >> 31).bitwise_and_(0x7FFFFFFF).bitwise_xor_(bits)
    )  # in place: fresh memory costs more than the work
    return ordered.long().bitwise_left_shift_(32).sub_(torch.arange(scores.shape[-1], device=scores.device))


def topk_confidence(logits: Tensor, parent_scores: Tensor, k: int, *, d2t: Tensor | None = None) -> TopkConfidence:
    """Candidates and beam of one draft level; what `radar_kernels.grow_tree` adds."""
    logits, parents = logits.float(), parent_scores.float()[..., None]
    logits = torch.where(logits < torch.inf, logits, -torch.inf)  # NaN and +inf
    tokens = _sort_keys(logits).topk(k, -1).indices
    best = logits.gather(-1, tokens)
    log_probs = best - logits.logsumexp(-1, keepdim=True)
    # of a dead row, and of a row without numbers, whose sum is -inf too
    candidate_scores = torch.where((parents == -torch.inf) | (best == -torch.inf), -torch.inf, log_probs + parents)
    flat = candidate_scores.flatten(1)
    indices = _sort_keys(flat).topk(k, -1).indices
    candidate_tokens = tokens if d2t is None else tokens + d2t[tokens]
    return TopkConfidence(candidate_scores, candidate_tokens, flat.gather(-1, indices), indices)


def lstm_step(
    scores: Tensor,
    hidden: Tensor,
    cell: Tensor,
    weights: PolicyWeights,
    *,
    threshold: Tensor | None = None,
    floor: float | None = None,
    update: bool = False,
) -> LstmStep:
    """One step of the stop policy; see `radar_kernels.lstm_step`."""
    w = PolicyWeights(*(tensor.float() for tensor in weights))
    state = hidden, cell
    scores, hidden, cell = scores.float(), hidden.float(), cell.float()
    if floor is not None:
        scores = scores.clamp(min=floor)
    linear = torch.nn.functional.linear
    gates = linear(scores, w.weight_ih, w.bias_ih) + linear(hidden, w.weight_hh, w.bias_hh)
    i, f, g, o = gates.chunk(4, -1)
    cell = f.sigmoid() * cell + i.sigmoid() * g.tanh()
    hidden = o.sigmoid() * cell.tanh()
    features = linear(torch.cat((hidden, scores), -1), w.mlp0_weight, w.mlp0_bias).relu()
    logits = linear(features, w.mlp3_weight, w.mlp3_bias)
    stop = logits.softmax(-1)[:, 0] > (0.5 if threshold is None else threshold)
    if update:
        hidden, cell = state[0].copy_(hidden), state[1].copy_(cell)
    return LstmStep(hidden, cell, logits, stop)


def choose_nodes(
    hidden: Tensor, scores: Tensor, mass: Tensor, weights: NodeWeights, *, floor: float | None = None
) -> NodeChoice:
    """One of several numbers of nodes; see `radar_kernels.choose_nodes`."""
    scores = scores if floor is None else scores.clamp(min=floor)
    linear = torch.nn.functional.linear
    features = linear(torch.cat((hidden, scores, mass), -1), weights.weight0, weights.bias0).relu()
    logits = linear(features, weights.weight3, weights.bias3)
    return NodeChoice(logits, logits.argmax(-1))


def batch_stop(stop: Tensor, alive: Tensor, active: Tensor, *, few: int) -> Tensor:
    """Rows that stop, or all if few are left, are no longer alive; see `radar_kernels.batch_stop`."""
    alive &= ~stop
    alive &= alive.sum() * few >= active.sum()
    return ~alive


def mass_stop(scores: Tensor, bounds: Tensor, call: Tensor) -> Tensor:
    """Whether the summed probability is below the call's bound; see `radar_kernels.mass_stop`."""
    bound = bounds[call.clamp(max=len(bounds) - 1)]
    call += 1
    return (scores.exp().sum(dim=-1) < bound) | (bound == torch.inf)


def store_rows(
    key_cache: Tensor,
    value_cache: Tensor,
    key: Tensor,
    value: Tensor,
    start: Tensor,
    block_table: Tensor | None = None,
) -> None:
    """Write new rows at `start`; see `radar_kernels.store_rows`."""
    rows = start[:, None] + torch.arange(key.shape[2], device=start.device)
    unsound = ~(key.isfinite() & value.isfinite()).all(-1, keepdim=True)
    key, value = key.masked_fill(unsound, torch.nan), value.masked_fill(unsound, 0)
    if block_table is not None:
        page, row = _places(rows, block_table)
        for cache, new in ((key_cache, key), (value_cache, value)):
            cache[page, :, row] = new.transpose(1, 2)
        return
    index = rows[:, None, :, None].expand(key.shape)
    key_cache.scatter_(2, index, key)
    value_cache.scatter_(2, index, value)


def _places(rows: Tensor, block_table: Tensor) -> tuple[Tensor, Tensor]:
    """Pages, and rows there, of rows [B, N] of sequences."""
    return block_table.gather(1, rows // PAGE).long(), rows % PAGE


def keep_rows(
    key_cache: Tensor,
    value_cache: Tensor,
    length: Tensor,
    path: Tensor,
    count: Tensor,
    block_table: Tensor | None = None,
) -> None:
    """Move the accepted rows together; see `radar_kernels.keep_rows`."""
    layers, batch, heads, capacity, dim = key_cache.shape
    if block_table is not None:
        batch, capacity = len(block_table), PAGE * block_table.shape[1]
    step = torch.arange(path.shape[1], device=path.device)
    # rows past `count` are written with what they hold; behind the end of the cache its last row stands for them
    target = (length[:, None] + step).clamp_(max=capacity - 1)
    source = torch.where(step < count[:, None], length[:, None] + path, target)
    if block_table is not None:
        (page, row), (old_page, old_row) = _places(target, block_table), _places(source, block_table)
        for cache in (key_cache, value_cache):
            cache[:, page, :, row] = cache[:, old_page, :, old_row]
        return
    shape = (layers, batch, heads, path.shape[1], dim)
    source, target = (index[None, :, None, :, None].expand(shape) for index in (source, target))
    for cache in (key_cache, value_cache):
        cache.scatter_(3, target, cache.gather(3, source))  # gather copies first, so overlaps are safe


def skinny_linear(x: Tensor, weight: Tensor, bias: Tensor | None = None, scale: Tensor | None = None) -> Tensor:
    """F.linear; with `scale` the 8-bit weight's rows are multiplied by it in float32; see `radar_kernels`."""
    if scale is None:
        return torch.nn.functional.linear(x, weight, bias)
    y = torch.nn.functional.linear(x.float(), unpack_rows(weight.float(), x.shape[-1])) * scale
    return (y if bias is None else y + bias.float()).to(x.dtype)
