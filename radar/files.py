"""Files that are whole or not there."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["replacing"]


@contextmanager
def replacing(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A place to write files to. In the end each takes, in the order of the names and in one step, the place of its
    namesake in `folder`, which is made if it is not there. An exception leaves `folder` as it was."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with TemporaryDirectory(dir=folder, prefix=".new-") as place:
        yield Path(place)
        for file in sorted(Path(place).iterdir()):
            with file.open("rb") as written:
                os.fsync(written.fileno())  # a name must not outlive a crash without its content
            os.replace(file, folder / file.name)
