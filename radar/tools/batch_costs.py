"""What a round costs by how many rows share it: a cost table for each number of rows, in one file.

{"format": "radar-batch-costs", "version": 1, "batches": [{"rows": 8, "plain_seconds": 0.0048, "costs": {...}}, ...]}

Each `costs` is a cost table as `radar.tools.costs` writes it, of all rows together: a draft call of all of them, a
verification by the nodes of all of them. A file with one such table alone is that of one row.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from radar.errors import UsageError
from radar.files import replacing
from radar.tools.costs import CostTable, read_json

__all__ = ["BatchCosts"]

FORMAT, FORMAT_VERSION = "radar-batch-costs", 1


@dataclass(frozen=True, kw_only=True)
class BatchCosts:
    """Cost tables by the number of rows.

    Attributes:
        tables: by rows; seconds of rounds of all rows, nodes of all rows.
        plain_seconds: of a step of plain decoding, by rows; none where it was not measured.

    Raises ValueError for no table, or rows and seconds that cannot be.
    """

    tables: Mapping[int, CostTable]
    plain_seconds: Mapping[int, float]

    def __post_init__(self) -> None:
        if not self.tables or min(self.tables) < 1 or not self.plain_seconds.keys() <= self.tables.keys():
            raise UsageError(f"BatchCosts: needs tables by rows, 1 or more, got {sorted(self.tables)}")
        if not all(0 <= seconds < math.inf for seconds in self.plain_seconds.values()):
            raise UsageError(f"BatchCosts: plain_seconds must be times of 0 or more, got {dict(self.plain_seconds)}")

    def of(self, rows: int) -> CostTable:
        """The table of so many rows. UsageError: it was not measured."""
        if rows not in self.tables:
            found, all_rows = sorted(self.tables), " ".join(map(str, sorted({*self.tables, rows})))
            raise UsageError(
                f"the cost tables are of {', '.join(map(str, found))} rows, not of {rows}: measure with `radar profile "
                f"--batch {all_rows} --costs FILE`, on the device that will decode"
            )
        return self.tables[rows]

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the JSON file; it is replaced in one step."""
        path = Path(path)
        batches = [
            {"rows": rows, "plain_seconds": self.plain_seconds.get(rows), "costs": table.to_dict()}
            for rows, table in sorted(self.tables.items())
        ]
        values = {"format": FORMAT, "version": FORMAT_VERSION, "batches": batches}
        with replacing(path.parent) as place:
            (place / path.name).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, device: str | None) -> BatchCosts:
        """Read what `save` wrote, or the table of one row; arguments and errors as of `CostTable.load`."""
        values = read_json(path)
        if not isinstance(values, dict) or values.get("format") != FORMAT:
            return cls(tables={1: CostTable.load(path, device=device)}, plain_seconds={})
        if (version := values.get("version")) != FORMAT_VERSION:
            raise UsageError(f"{path}: version {version!r} is unknown, this code reads {FORMAT_VERSION}")
        tables: dict[int, CostTable] = {}
        plain: dict[int, float] = {}
        for batch in _batches(values, str(path)):
            rows, seconds = batch["rows"], batch["plain_seconds"]
            tables[rows] = CostTable.from_dict(batch["costs"], source=f"{path}, {rows} rows")
            tables[rows].check_device(device, source=str(path))
            if seconds is not None:
                plain[rows] = seconds
        try:
            return cls(tables=tables, plain_seconds=plain)
        except UsageError as error:
            raise UsageError(f"{path}: {error}") from error


def _batches(values: dict[str, Any], source: str) -> list[dict[str, Any]]:
    found, names = values.get("batches"), {"rows": int, "plain_seconds": float | int | None, "costs": dict}
    whole = isinstance(found, list) and all(
        isinstance(one, dict)
        and one.keys() == names.keys()
        and all(isinstance(one[name], kind) and not isinstance(one[name], bool) for name, kind in names.items())
        for one in found
    )
    if not whole or not isinstance(found, list):
        raise UsageError(f"{source}: batches must be a list of {{{', '.join(names)}}}")
    if len({one["rows"] for one in found}) < len(found):
        raise UsageError(f"{source}: a number of rows has two tables")
    return found
