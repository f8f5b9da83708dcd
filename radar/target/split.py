"""Linear layers of which each rank holds a part, and what makes one result of the ranks' own."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn.functional import linear

from radar.target.ranks import Ranks
from radar_kernels import Parts

__all__ = ["GatheredLinear", "SplitLinear", "SummedLinear", "local_linear"]


class SplitLinear(nn.Linear):
    """A layer whose forward gives what the whole one would, on every rank.

    Args:
        weight: this rank's part of it.
        ranks: that hold the others.
    """

    def __init__(self, weight: nn.Parameter, ranks: Ranks) -> None:
        super().__init__(weight.shape[1], weight.shape[0], bias=False, device="meta")
        self.weight = weight
        self.ranks = ranks

    def forward(self, x: Tensor) -> Tensor:
        """[..., in_features] to [..., all of the layer's outputs]."""
        return self.whole(linear(x, self.weight))

    def whole(self, part: Tensor) -> Tensor:
        """The layer's result from what this rank's weight makes of its input."""
        raise NotImplementedError

    def parts(self, part: Tensor) -> Tensor | Parts:
        """The same, or what `add_rms_norm` adds up."""
        return self.whole(part)


class SummedLinear(SplitLinear):
    """A layer whose inputs are split: the ranks' results are added up, in the order of the ranks.

    A sum that the network makes may go another way round for other numbers of rows; this one is the same for all.

    Args:
        bias: [out_features] of the whole layer, behind the sum.
    """

    def __init__(self, weight: nn.Parameter, ranks: Ranks, bias: nn.Parameter | None = None) -> None:
        super().__init__(weight, ranks)
        self.added_bias = bias  # not `bias`, which each rank would add to its own

    def whole(self, part: Tensor) -> Tensor:
        """See `SplitLinear`."""
        return self.parts(part).added()

    def parts(self, part: Tensor) -> Parts:
        """See `SplitLinear`."""
        return Parts(self.ranks.gather(part), None, self.added_bias, part.dtype)


class GatheredLinear(SplitLinear):
    """A layer whose outputs are split, and put side by side: the one over the vocabulary."""

    def whole(self, part: Tensor) -> Tensor:
        """See `SplitLinear`."""
        return self.ranks.gather(part).movedim(0, -2).flatten(-2)


def local_linear(weight: nn.Parameter, bias: nn.Parameter | None) -> nn.Linear:
    """A plain layer with this rank's weight and bias: some of the whole one's outputs."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    made.weight, made.bias = weight, bias  # type: ignore[assignment]
    return made
