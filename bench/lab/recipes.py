"""The pairs that are trained here: what differs in their training, and what they are widened to.

`embedded` is the one that ships; the other three stand for three large models, each with that model's ratio of query to
key-value heads, its own mixture of text and its own seed.
"""

from __future__ import annotations

from dataclasses import dataclass

from bench.shapes import DEEPSEEK_8B, LLAMA_8B, VICUNA_13B, Geometry

__all__ = ["RECIPES", "SIZES", "Recipe", "Size"]


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One pair.

    Attributes:
        geometry: that the pair is widened to.
        group: query heads of a key-value head.
        instruct_share: of instruction data in the target's text, at the start and at the end of its training.
        greedy_share: of the text that the target writes for its head; the rest is sampled.
        seed: of weights, order and sampling.
    """

    geometry: Geometry
    group: int
    instruct_share: tuple[float, float]
    greedy_share: float
    seed: int


@dataclass(frozen=True, kw_only=True)
class Size:
    """Sizes of a small pair and its training.

    Attributes:
        heads: query heads; a whole multiple of the recipe's group.
        draft_vocabulary, draft_intermediate: of the head.
        taps: hidden states that the head reads; None: EAGLE-3's rule.
        batch, length: of the target's training; draft_batch, draft_length: of the head's.
        write_batch, write_tokens: rows and tokens that the target writes at once.
        learning_rate, draft_learning_rate: peaks.
    """

    hidden: int
    intermediate: int
    layers: int
    heads: int
    head_dim: int
    draft_vocabulary: int
    draft_intermediate: int
    taps: tuple[int, ...] | None = None
    batch: int
    length: int
    draft_batch: int
    draft_length: int
    write_batch: int
    write_tokens: int = 224
    learning_rate: float
    draft_learning_rate: float


RECIPES = {
    "embedded": Recipe(geometry=LLAMA_8B, group=2, instruct_share=(0.25, 0.35), greedy_share=0.6, seed=0),
    "llama": Recipe(geometry=LLAMA_8B, group=4, instruct_share=(0.15, 0.35), greedy_share=0.6, seed=0),
    "vicuna": Recipe(geometry=VICUNA_13B, group=1, instruct_share=(0.2, 0.45), greedy_share=0.4, seed=1),
    "deepseek": Recipe(geometry=DEEPSEEK_8B, group=4, instruct_share=(0.1, 0.3), greedy_share=0.8, seed=2),
}

SIZES = {
    # EAGLE-3's rule, made for deep models, would hide the last three of seven layers
    "embedded": Size(
        hidden=256, intermediate=640, layers=7, heads=4, head_dim=64, draft_vocabulary=2048, draft_intermediate=640,
        taps=(2, 4, 6), batch=128, length=1024, draft_batch=32, draft_length=512, write_batch=2048, learning_rate=2e-3,
        draft_learning_rate=2e-3,
    ),
    "lab": Size(
        hidden=768, intermediate=2048, layers=12, heads=8, head_dim=128, draft_vocabulary=16384,
        draft_intermediate=2048, batch=64, length=1024, draft_batch=24, draft_length=512, write_batch=1024,
        learning_rate=1.5e-3, draft_learning_rate=8e-4,
    ),
    "smoke": Size(
        hidden=64, intermediate=128, layers=4, heads=4, head_dim=16, draft_vocabulary=1024, draft_intermediate=96,
        taps=(1, 2, 3), batch=4, length=128, draft_batch=4, draft_length=64, write_batch=8, write_tokens=24,
        learning_rate=2e-3, draft_learning_rate=2e-3,
    ),
}  # fmt: skip
