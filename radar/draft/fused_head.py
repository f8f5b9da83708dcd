"""The draft head's layer as a GPU runs it best: the formulas of `Eagle3Draft` in six kernels and four products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

from radar.draft.eagle3 import PARTS, Eagle3Draft
from radar.target.attention import attend_stored
from radar.target.layers import LayerProducts, Product, is_plain_tensor, is_untouched, layer_products
from radar.target.running import current_cache
from radar_kernels import Beam, HeadNorms, add_rms_norm, draft_rows, rotate_store, silu_mul

__all__ = ["FusedHead", "fused_head"]


class FusedHead(NamedTuple):
    """A head with nothing on it or in it but what `Eagle3Draft` has, inside of a run of its groups.

    Attributes:
        products: of its layer.
        fc: what joins the taps.
        lm_head: its output layer.
    """

    draft: Eagle3Draft
    products: LayerProducts
    fc: Product
    lm_head: Product

    def fuse(self, aux_hidden_states: Tensor) -> Tensor:
        """As `Eagle3Draft.fuse`."""
        return self.fc.product(self.draft.normed_taps(aux_hidden_states))[0]

    def logits(self, normed: Tensor) -> Tensor:
        """Scores of the draft vocabulary [B, N, draft_vocab] from what `__call__` returned second."""
        return self.lm_head.product(normed)[0]

    def __call__(
        self, tokens: Tensor, table: Tensor, hidden: Tensor, angles: tuple[Tensor, Tensor], ancestors: Tensor,
        into: Tensor, *, beam: Beam | None, count: Tensor | None,
    ) -> Tensor:  # fmt: skip
        """`Eagle3Draft.forward` of rows whose keys go to the cache, in one pass, and the final norm.

        Args:
            tokens, table, hidden, beam: as in `radar_kernels.draft_rows`.
            angles: tables [T, D] of cosines and sines, by position.
            ancestors: [B, N, W] words as in `attend`.
            into: [B, N or more, hidden] takes what the next level is fed with.
            count: [B]: beyond the cache only row count[b] - 1 matters; None: all rows do.

        Returns:
            What the output layer reads [B, N, hidden], or with `count` [B, 1, hidden].
        """
        draft, products, layer = self.draft, self.products, self.draft.midlayer
        attention, size, eps = layer.self_attn, hidden.shape[-1], draft.config.rms_norm_eps
        weights = layer.input_layernorm.weight, layer.hidden_norm.weight
        norms, cache = None, current_cache()
        rows = draft_rows(tokens, table, hidden, cache.length, weights, eps, beam=beam)
        if draft.config.qk_norm:
            norms = HeadNorms(attention.q_norm.weight, attention.k_norm.weight, eps)  # type: ignore[arg-type]
        query, key, value = products.qkv.product(rows.normed)
        query = rotate_store(
            query, key, value, *angles, cache.keys[0], cache.values[0], rows.start, positions=rows.positions,
            norms=norms,
        )  # fmt: skip
        out = attend_stored(query, ancestors, 0, draft.config.head_dim**-0.5)
        change = products.o.parts(out.flatten(2))
        hidden = rows.normed[..., size:] if layer.norm_before_residual else rows.states
        hidden, normed = add_rms_norm(hidden, change, layer.post_attention_layernorm.weight, eps, count=count)
        gate, up = products.gate_up.product(normed)
        change = products.down.parts(silu_mul(gate, up))
        fed = into[:, : hidden.shape[1]]
        total, last = (None, fed) if draft.config.norm_output else (fed, None)
        return add_rms_norm(hidden, change, draft.norm.weight, eps, total=total, out=last)[1]


def fused_head(draft: Eagle3Draft, groups: Sequence[Product]) -> FusedHead | None:
    """None for a head with a hook, a forward, a module or weights that its class does not give it."""
    products = layer_products(draft.midlayer, groups)
    alone = {id(group.linears[0]): group for group in groups if len(group.linears) == 1}
    fc, lm_head = alone.get(id(draft.fc)), alone.get(id(draft.lm_head))
    parts = [*draft.midlayer.modules(), *draft.norm.modules()]
    weights = [*draft.midlayer.parameters(), *draft.norm.parameters()]
    if (
        products is None
        or fc is None
        or lm_head is None
        or type(draft) is not Eagle3Draft
        or not all(type(part) in PARTS for part in parts)
        or not all(map(is_untouched, (draft, *parts)))
        or not all(map(is_plain_tensor, weights))
        or len({weight.dtype for weight in weights}) > 1
    ):
        return None
    return FusedHead(draft, products, fc, lm_head)
