"""First tokens of texts whose prompts have been taken in, on their way to the host while rounds go on with them."""

from __future__ import annotations

from collections.abc import Hashable, Iterable

from torch import Tensor

from radar.engine.capture import Mailbox
from radar.engine.logprobs import Watch
from radar.engine.scored import Scored
from radar.engine.width import Text
from radar.metrics import Round

__all__ = ["FirstTokens"]


class FirstTokens:
    """Brings them by the row in which a text began.

    Args:
        root: [B] the last token of every row's text.
        ahead: rounds go on before the host knows a token; False: it is read at once.
    """

    def __init__(self, root: Tensor, *, ahead: bool) -> None:
        self._box = Mailbox(root[:, None]) if ahead else None

    def send(self, text: Text, row: int, scored: Scored) -> None:
        """The text's first token is in its row, and was chosen by `scored`, of one token."""
        assert text.first is not None
        text.watch = Watch(scored, [text.request])
        if self._box is None:
            text.first.tokens = scored.tokens[0].tolist()
        else:
            self._box.send()
            text.first_row = row

    def move(self, text: Text, row: int) -> None:
        """The text has another row, and its old one may be taken before the token is read."""
        if text.first is not None and self._box is not None:
            self._box.send()
            text.first_row = row

    def know(self, text: Text) -> None:
        """Read the token of a text that leaves its row."""
        if text.first is not None:
            self._read([text])

    def take(self, texts: Iterable[Text]) -> dict[Hashable, Round]:
        """The first rounds of those that have one still to be told, by key."""
        entering = [text for text in texts if text.first is not None]
        self._read(entering)
        found: dict[Hashable, Round] = {}
        for text in entering:
            item, text.first = text.first, None
            assert item is not None
            assert text.watch is not None
            text.watch.tell([item])
            text.watch = None
            text.ids += item.tokens
            found[text.key] = item
        return found

    def _read(self, texts: Iterable[Text]) -> None:
        unknown = [(text, text.first) for text in texts if text.first is not None and not text.first.tokens]
        if unknown:
            assert self._box is not None
            tokens = self._box.read()
            for text, first in unknown:
                first.tokens = tokens[text.first_row]
