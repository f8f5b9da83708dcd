"""Tables as people read them: a header with units, numbers to the right, words to the left."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

__all__ = ["table"]

_NUMBER = re.compile(r"[-+]?[\d.,]*\d( ?%| x)?|nan|[-+]?inf")


def table(headers: Sequence[str], rows: Iterable[Sequence[object]], *, indent: str = "") -> str:
    """Columns as wide as what stands in them, with a line under the headers.

    Args:
        headers: one a column, the unit with it: "draft calls [per round]".
        rows: cells, one a column; a number is written in the form that its reader needs, so as text. None is empty.
        indent: in front of every line.

    Returns:
        Lines without a newline at the end. A column of which every cell is a number stands to the right.
    """
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *cells, strict=True))
    lines = [""] * (len(cells) + 2)
    for header, *column in columns:
        numbers = any(column) and all(_NUMBER.fullmatch(cell) for cell in column if cell)
        width = max(map(len, [header, *column]))
        for index, cell in enumerate([header, "-" * width, *column]):
            lines[index] += "  " + (cell.rjust(width) if numbers else cell.ljust(width))
    return "\n".join((indent + line[2:]).rstrip() for line in lines)
