"""The command that a result file names."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

__all__ = ["command_line"]


def command_line(module: str, argv: Sequence[str]) -> str:
    """`python -m module` with its arguments. Where a machine keeps its files is nobody's business: /a/b/c becomes c."""
    return " ".join(["python -m", module, *map(_without_folders, argv)])


def _without_folders(word: str) -> str:
    """NAME=/a/b/c becomes NAME=c."""
    name, mark, path = word.rpartition("=")
    return name + mark + Path(path).name if path.startswith("/") else word
