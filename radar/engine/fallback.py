"""Never slower: whether the next round drafts or is a plain step, by the times of both."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

__all__ = ["Fallback"]

FIRST = 32  # rounds before the first probe of the other kind, and after a change of mind
LONGEST = 1024  # rounds between two probes, at most
PROBE = 6  # rounds of a probe; the first pays for the change and is not counted
WINDOW = 32  # rounds that a rate looks back
MARGIN = 1.03  # how much faster the other kind must be: less is noise


class Fallback:
    """Compares tokens per second of rounds that draft and of plain steps, and takes the faster kind.

    The kind not in use is probed now and then: after `FIRST` rounds, then at intervals that double as long as the
    probes change nothing; where it is known what plain steps take, after `LONGEST`. A text changes by none of it, only
    its speed does.

    Attributes:
        agreed: from what the clock says to what is done: where several processes make the rounds, one decides for all.
    """

    def __init__(self) -> None:
        self.agreed: Callable[[bool], bool] = lambda drafts: drafts
        self._plain = _Rate()
        self._is_expected = False
        self._interval = self._left = FIRST
        self.forget_rounds()

    def forget_rounds(self) -> None:
        """Another policy drafts from now on: what is known of its rounds is void, plain steps cost what they did."""
        self._drafted = _Rate()
        self._pays = True
        self._probing = False
        self._wait(LONGEST if self._is_expected else FIRST)

    def expect(self, seconds: float) -> None:
        """What a plain step takes, which yields one token of a text: before any text has come."""
        self._plain.add(1, seconds)
        self._is_expected = True
        self.forget_rounds()

    def begin_text(self) -> None:
        """Another text may suit the drafts: look again soon."""
        if not self._pays and not self._probing:
            self._wait(FIRST)

    @property
    def drafts(self) -> bool:
        """Whether the next round drafts. Asked once before each."""
        return self.agreed(self._drafts)

    @property
    def _drafts(self) -> bool:
        return self._pays != self._probing

    def record(self, tokens: float, seconds: float | None, *, drafted: bool | None = None) -> None:
        """Take the result of a round.

        Args:
            tokens: that the round yielded, of several texts the mean.
            seconds: that it took; None: not known, the host came late for the result.
            drafted: its kind, where it was launched before the last result was known: then it may not be the one that
                `drafts` says, and tells nothing. None: it is.
        """
        if drafted is not None and drafted != self._drafts:
            return
        rate = self._drafted if self._drafts else self._plain
        if seconds is not None and not (self._probing and self._left == PROBE):
            rate.add(tokens, seconds)
        self._left -= 1
        if self._probing:
            if self._left == 0:
                self._probing = False
                self._wait(min(2 * self._interval, LONGEST))
                self._decide()
        elif self._left == 0:
            self._probing, self._left = True, PROBE
            (self._drafted if self._drafts else self._plain).clear()
        elif self._pays and self._drafted.is_full:
            self._decide()

    def _decide(self) -> None:
        drafted, plain = self._drafted.value, self._plain.value
        if drafted is None or plain is None:
            return
        pays = drafted * MARGIN >= plain if self._pays else drafted > plain * MARGIN
        if pays != self._pays:
            self._pays = pays
            self._wait(FIRST)

    def _wait(self, rounds: int) -> None:
        self._interval = self._left = rounds


class _Rate:
    """Tokens per second over the last rounds."""

    def __init__(self) -> None:
        self._rounds: deque[tuple[float, float]] = deque(maxlen=WINDOW)

    def add(self, tokens: float, seconds: float) -> None:
        self._rounds.append((tokens, seconds))

    def clear(self) -> None:
        self._rounds.clear()

    @property
    def is_full(self) -> bool:
        return len(self._rounds) == WINDOW

    @property
    def value(self) -> float | None:
        seconds = sum(seconds for _, seconds in self._rounds)
        return sum(tokens for tokens, _ in self._rounds) / seconds if seconds > 0 else None
