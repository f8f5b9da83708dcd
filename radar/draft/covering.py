"""A head's own embedding beside a target whose vocabulary is padded further."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["covering"]


class _Covering(nn.Module):
    """An embedding for ids beyond its rows too: they read its last row. They stand for padding, which no text holds;
    whatever is drafted behind one, the text is the target's own."""

    def __init__(self, embedding: nn.Embedding) -> None:
        super().__init__()
        self.embedding = embedding

    def forward(self, tokens: Tensor) -> Tensor:
        return self.embedding(tokens.clamp(max=self.embedding.num_embeddings - 1))  # type: ignore[no-any-return]


def covering(embedding: nn.Embedding, target: nn.Module) -> nn.Module:
    """The embedding, if it has as many rows as the target's, or one that reads it for all of the target's ids."""
    rows = int(getattr(target, "num_embeddings", embedding.num_embeddings))
    return embedding if embedding.num_embeddings >= rows else _Covering(embedding)
