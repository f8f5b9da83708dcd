"""Folders through a door that lets only small files pass: `python -m bench.lab.pieces split FOLDER OUT`.

`python -m bench.lab.pieces join OUT FOLDER` is the way back. The pieces of OUT are one tar archive, cut; `join` refuses
them unless all are there as they were cut.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

__all__ = ["join", "split"]

LIMIT = 15 * 2**20  # bytes of a piece
INDEX = "pieces.json"


def split(folder: Path, out: Path, *, limit: int = LIMIT) -> list[Path]:
    """Write `folder` as out/piece-0, piece-1, ... of at most `limit` bytes each; returns them."""
    if not folder.is_dir():
        raise FileNotFoundError(f"no folder {folder} to split")
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        archive.add(folder, arcname=".")
    data = buffer.getvalue()
    out.mkdir(parents=True, exist_ok=True)
    pieces = []
    for index, start in enumerate(range(0, len(data), limit)):
        pieces.append(out / f"piece-{index}")
        pieces[-1].write_bytes(data[start : start + limit])
    index_of = {"pieces": len(pieces), "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (out / INDEX).write_text(json.dumps(index_of) + "\n")
    return pieces


def join(pieces: Path, folder: Path) -> None:
    """Unpack what `split` wrote to `pieces` into `folder`. ValueError: a piece is missing or was changed."""
    if not (pieces / INDEX).is_file():
        raise FileNotFoundError(f"no {INDEX} in {pieces}: it does not hold a folder that was split")
    index = json.loads((pieces / INDEX).read_text())
    files = [pieces / f"piece-{number}" for number in range(index["pieces"])]
    if missing := [file.name for file in files if not file.is_file()]:
        raise ValueError(f"{pieces} lacks {', '.join(missing)}")
    data = b"".join(file.read_bytes() for file in files)
    if hashlib.sha256(data).hexdigest() != index["sha256"]:
        raise ValueError(f"the pieces in {pieces} are not those that were cut: copy them again")
    # Python 3.11 has filters from 3.11.4 on; from 3.12 on it warns where none is named
    safely: dict[str, Any] = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        archive.extractall(folder, **safely)


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("verb", choices=("split", "join"))
    parser.add_argument("source", type=Path)
    parser.add_argument("out", type=Path)
    args = parser.parse_args(argv)
    if args.verb == "join":
        join(args.source, args.out)
        return
    pieces = split(args.source, args.out)
    print(f"{len(pieces)} pieces, {sum(piece.stat().st_size for piece in pieces) / 2**20:.1f} MiB")


if __name__ == "__main__":
    main(sys.argv[1:])
