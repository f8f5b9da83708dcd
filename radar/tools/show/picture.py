"""A picture of a generated text, coloured by rounds: SVG without a script, for a README."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple
from xml.sax.saxutils import escape

from radar.tools.show.palette import DARK, LIGHT, Scheme, step
from radar.tools.show.pieces import Piece, pieces
from radar.tools.show.trace import Trace

__all__ = ["picture"]

MOST, LEAST = 84, 62  # characters of a line, after which a text is wrapped, and that the legend needs
CELL, LINE = 9, 28  # pixels that a character and a line take
MARGIN = 26


class _Run(NamedTuple):
    """A token's text, or its part, on one line."""

    row: int
    column: int
    text: str
    round: int
    is_own: bool


def picture(trace: Trace, tokenizer: Any, *, command: str) -> str:
    """The text of a generation as SVG, light or dark as its reader's screen.

    Widths do not depend on the reader's fonts. Nothing in it is measured time, so the same text is the same file.

    Args:
        trace: the generation.
        tokenizer: of its decoder.
        command: what made it, for the picture's description.
    """
    question = "".join(piece.text for piece in pieces(tokenizer, trace.prompt_ids) if not piece.is_special).strip()
    head = list(_runs([(Piece(question), -1, False)]))
    top = head[-1].row + 1 if head else 0
    runs = [run._replace(row=run.row + top) for run in _runs(_tokens(trace, tokenizer))]
    bottom = MARGIN + (max((run.row for run in runs), default=top) + 1) * LINE
    columns = max([LEAST, *(run.column + _width(run) for run in (*head, *runs))])
    width, height = 2 * MARGIN + columns * CELL, bottom + 92
    m = trace.metrics
    summary = f"{m.num_tokens} tokens in {m.num_spec_steps} rounds"
    sizes = [len(item.round.tokens) for item in trace.rounds]
    body = [
        f'<rect class="paper" x=".5" y=".5" width="{width - 1}" height="{height - 1}" rx="10"/>',
        *(_text(run, "quiet") for run in head),
        *_chips(runs, sizes),
        *(_text(run, "ink") for run in runs),
        *(_underline(run) for run in runs if run.is_own),
        *_legend(summary, bottom + 20, width),
    ]
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" viewBox="0 0 {width} {height}" '
        f'xml:space="preserve" role="img" aria-labelledby="title about">\n<title id="title">{summary}</title>\n'
        f'<desc id="about">A generated text, coloured by rounds: {_xml(trace.text)}\nMade by: {_xml(command)}</desc>\n'
        f"<style>\n{_style(LIGHT)}\n@media (prefers-color-scheme: dark) {{\n{_style(DARK)}\n}}\n{_FONTS}\n</style>\n"
        + "\n".join(part for part in body if part)
        + "\n</svg>\n"
    )


_FONTS = (
    "text { font: 15px ui-monospace, monospace; white-space: pre; }\n"
    ".sans { font: 13px system-ui, sans-serif; }\n.strong { font-weight: 600; }"
)
_NO_XML = re.compile("[^\t\n\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def _xml(text: str) -> str:
    """Text of the model as XML has it, which knows no control characters."""
    return escape(_NO_XML.sub("\ufffd", text))


def _style(scheme: Scheme) -> str:
    steps = "".join(f".step-{index} {{ fill: {colour}; }} " for index, colour in enumerate(scheme.steps))
    return (
        f"{steps}.paper {{ fill: {scheme.paper}; stroke: {scheme.line}; }} .ink {{ fill: {scheme.ink}; }} "
        f".quiet {{ fill: {scheme.quiet}; }} .own {{ stroke: {scheme.ink}; stroke-width: 2; }}"
    )


def _tokens(trace: Trace, tokenizer: Any) -> Iterator[tuple[Piece, int, bool]]:
    """Each token's text, its round and whether it is the target's own."""
    texts = iter(pieces(tokenizer, trace.token_ids))
    for number, item in enumerate(trace.rounds):
        count = len(item.round.tokens)
        for at in range(count):
            yield next(texts), number, at == count - 1 == item.round.accept_length


def _runs(tokens: Iterator[tuple[Piece, int, bool]] | Sequence[tuple[Piece, int, bool]]) -> Iterator[_Run]:
    """Lay tokens out on lines."""
    row = column = 0
    for piece, number, is_own in tokens:
        part, start = "", column
        for character in piece.text.expandtabs(4):
            size = _cells(character)
            if character == "\n" or column + size > MOST:
                yield _Run(row, start, part, number, is_own)
                row, column, part, start = row + 1, 0, "", 0
            if character != "\n":
                part, column = part + character, column + size
        if part:
            yield _Run(row, start, part, number, is_own)


def _cells(character: str) -> int:
    if unicodedata.combining(character):
        return 0
    return 2 if unicodedata.east_asian_width(character) in "WF" else 1


def _width(run: _Run) -> int:
    return sum(map(_cells, run.text))


def _place(run: _Run) -> tuple[float, float, float]:
    """Left and right edge, and base line."""
    left = MARGIN + run.column * CELL
    return left, left + _width(run) * CELL, MARGIN + run.row * LINE + 18


def _chips(runs: Sequence[_Run], sizes: Sequence[int]) -> Iterator[str]:
    """What lies behind a round's tokens, a piece a line."""
    spans: dict[tuple[int, int], tuple[float, float, float]] = {}
    for run in runs:
        left, right, base = _place(run)
        first = spans.get((run.round, run.row), (left, right, base))[0]
        spans[run.round, run.row] = first, right, base
    for (number, _), (left, right, base) in spans.items():
        if right > left:
            shape = f'x="{left + 0.75:.1f}" y="{base - 16}" width="{right - left - 1.5:.1f}" height="22" rx="3"'
            yield f'<rect class="step-{step(sizes[number])}" {shape}/>'


def _text(run: _Run, kind: str) -> str:
    word = run.text.strip()
    if not word:
        return ""
    indent = len(run.text) - len(run.text.lstrip())
    left, _, base = _place(run)
    length = _width(run._replace(text=word)) * CELL
    size = f'textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs"'
    return f'<text class="{kind}" x="{left + indent * CELL:.1f}" y="{base}" {size}>{_xml(word)}</text>'


def _underline(run: _Run) -> str:
    left, right, base = _place(run)
    return f'<path class="own" d="M{left + 0.75:.1f} {base + 5}H{right - 0.75:.1f}"/>' if right > left else ""


def _legend(summary: str, top: float, width: float) -> Iterator[str]:
    says = (
        "A colour is one pass of the target over a tree of drafts.",
        "Underlined: the token that the target adds itself.",
    )
    yield f'<text class="sans strong ink" x="{MARGIN}" y="{top + 14}">{summary}</text>'
    for line, text in enumerate(says):
        yield f'<text class="sans quiet" x="{MARGIN}" y="{top + 37 + 20 * line}">{text}</text>'
    size, count = 26, len(LIGHT.steps)
    left = width - MARGIN - size * count
    yield f'<text class="sans quiet" x="{left - 10}" y="{top + 14}" text-anchor="end">tokens from one round</text>'
    for index in range(count):
        x = left + index * size
        yield f'<rect class="step-{index}" x="{x}" y="{top - 2}" width="{size}" height="22"/>'
        label = f"{count}+" if index + 1 == count else str(index + 1)
        yield f'<text class="sans ink" x="{x + size / 2}" y="{top + 14}" text-anchor="middle">{label}</text>'
