"""The same prompts decoded by several decoders, one after the other at every turn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from radar.tools.prompts import PromptLine, encode_prompt

__all__ = ["Text", "decode_texts"]


@dataclass(frozen=True)
class Text:
    """What several decoders wrote after one prompt.

    Attributes:
        prompt, turn: index of the prompt, and of the turn in it.
        prompt_ids: token ids, earlier turns and their answers included.
        outputs: new tokens by the decoder's name; the first decoder's are those that the others are compared with.
    """

    prompt: int
    turn: int
    prompt_ids: list[int]
    outputs: dict[str, list[int]]

    @property
    def expected(self) -> list[int]:
        """The first decoder's output."""
        return next(iter(self.outputs.values()))


def decode_texts(
    decoders: Mapping[str, Callable[[list[int]], list[int]]],
    lines: Sequence[PromptLine],
    tokenizer: Any,
    advance: Callable[[], object] = lambda: None,
) -> Iterator[Text]:
    """Decode every turn of every prompt; a later turn follows the first decoder's answers, whoever decodes it.

    Args:
        decoders: name -> prompt ids -> new tokens.
        lines: the prompts.
        tokenizer: of the target.
        advance: called after each prompt, for a progress bar.
    """
    for index, line in enumerate(lines):
        answers: list[str] = []
        for turn in range(len(line.turns)):
            ids = encode_prompt(line, tokenizer, answers)
            text = Text(index, turn, ids, {name: decode(ids) for name, decode in decoders.items()})
            answers.append(tokenizer.decode(text.expected, skip_special_tokens=True))
            yield text
        advance()
