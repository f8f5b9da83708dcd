"""Python modules that are installed, as text to train on."""

from __future__ import annotations

import importlib.util
import random
import sysconfig
from collections.abc import Sequence
from pathlib import Path

__all__ = ["PACKAGES", "python_files"]

PACKAGES = ("sympy", "networkx", "numpy", "torch")
SKIPPED_FOLDERS = {"site-packages", "_vendor", "third_party", "_antlr", "encodings", "__pycache__"}


def python_files(seed: int, packages: Sequence[str] = PACKAGES) -> list[str]:
    """Readable modules: the standard library first, then the packages in random order."""
    rng = random.Random(seed)
    library = _modules(Path(sysconfig.get_path("stdlib")))
    specs = [importlib.util.find_spec(name) for name in packages]
    others = [text for one in specs if one and one.origin for text in _modules(Path(one.origin).parent)]
    rng.shuffle(library)
    rng.shuffle(others)
    return library + others


def _modules(root: Path) -> list[str]:
    files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
    return [text for path in files if (text := _read(path)) is not None]


def _read(path: Path) -> str | None:
    if not 400 < path.stat().st_size < 200_000:
        return None
    try:
        text = path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError):
        return None
    tables = sum(character.isdigit() for character in text) > 0.12 * len(text)  # generated numbers teach nothing
    return None if tables or not text.isascii() else text.strip() + "\n"
