"""What attention of a layer does besides weighing all of a row's path: a window, a softcap, a sink."""

from __future__ import annotations

from typing import NamedTuple, Self

from torch import Tensor

__all__ = ["PLAIN", "Needs"]


class Needs(NamedTuple):
    """Of one layer.

    Attributes:
        window: keys that a row sees, its own included; None: all of its path.
        softcap: scores become softcap * tanh(score / softcap); None: they stay.
        sink: [H], a score of each head that takes weight and adds no value; None: there is none.
    """

    window: int | None = None
    softcap: float | None = None
    sink: Tensor | None = None

    def within(self, capacity: int) -> Self:
        """The same, where no text is longer than `capacity`: a window as wide as that hides nothing."""
        return self if self.window is None or self.window < capacity else self._replace(window=None)

    @property
    def any(self) -> bool:
        return self.window is not None or self.softcap is not None or self.sink is not None


PLAIN = Needs()
