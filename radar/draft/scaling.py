"""How a head stretches its rotary frequencies, as its file says it; `radar.draft.rope` has the formulas."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any

from radar.draft.values import read_flag, read_integer, read_positive, wrong_value
from radar.errors import FormatError, UsageError

__all__ = ["RopeScaling", "read_rope"]


def _read_yes(values: Mapping[str, Any], name: str) -> bool:
    return read_flag(values, name, True)


_READERS: dict[str, Callable[[Mapping[str, Any], str], Any]] = {
    "truncate": _read_yes,
    "original_max_position_embeddings": read_integer,
}
_KEYS = {"rope_type", "type", "rope_theta", "mscale", "mscale_all_dim"}


@dataclass(frozen=True, kw_only=True)
class RopeScaling:
    """How a head stretches its rotary frequencies; `radar.draft.rope` has the formulas.

    Names and defaults are those of transformers' `rope_parameters`. `linear` reads `factor` alone, `llama3` also the
    frequency factors and the original length, `yarn` the betas, `truncate`, the original length and
    `attention_factor`, by which cosines and sines are multiplied (None: 0.1 ln(factor) + 1).
    """

    rope_type: str
    factor: float
    original_max_position_embeddings: int | None = None
    low_freq_factor: float | None = None
    high_freq_factor: float | None = None
    beta_fast: float = 32.0
    beta_slow: float = 1.0
    truncate: bool = True
    attention_factor: float | None = None

    def __post_init__(self) -> None:
        needs = {
            "linear": (),
            "llama3": ("low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
            "yarn": ("original_max_position_embeddings",),
        }
        if self.rope_type not in needs:
            raise UsageError(f"rope type {self.rope_type!r} is not supported; supported: default, {', '.join(needs)}")
        missing = [name for name in needs[self.rope_type] if getattr(self, name) is None]
        if missing:
            raise UsageError(f"rope type {self.rope_type} needs {', '.join(missing)}")
        low, high = self.low_freq_factor, self.high_freq_factor
        if low is not None and high is not None and high <= low:
            raise UsageError(f"high_freq_factor ({high}) must be larger than low_freq_factor ({low})")

    @classmethod
    def from_dict(cls, values: Mapping[str, Any], max_position_embeddings: int | None = None) -> RopeScaling | None:
        """Read `rope_scaling` or `rope_parameters`; None for the default type.

        `max_position_embeddings` stands in for yarn's original length, where it is not given. Raises FormatError for a
        type that is not supported and for keys that this reader would have to ignore.
        """
        kind = values.get("rope_type") or values.get("type") or "default"
        if not isinstance(kind, str):
            raise wrong_value("rope_type", "a name", kind)
        if values.get("rope_type") and values.get("type") and values["rope_type"] != values["type"]:
            raise FormatError(f"rope_type {values['rope_type']!r} contradicts type {values['type']!r}")
        names = {field.name for field in fields(cls)} - {"rope_type"}
        unknown = sorted(values.keys() - names - _KEYS)
        if kind == "default":
            # leftovers such as factor: 1.0 are common here and mean nothing; sections of axes are another embedding
            unknown = [name for name in unknown if "mrope" in name]
        if unknown:
            raise FormatError(f"rope keys {', '.join(unknown)} are not supported")
        if kind == "default":
            return None
        given = {name: values[name] for name in names if values.get(name) is not None}
        read: dict[str, Any] = {
            name: _READERS[name](given, name) if name in _READERS else read_positive(given, name) for name in given
        }
        if "factor" not in read:
            raise FormatError(f"rope type {kind} needs factor")
        if kind == "yarn":
            read.setdefault("original_max_position_embeddings", max_position_embeddings)
            if "attention_factor" not in read and values.get("mscale") and values.get("mscale_all_dim"):
                scales = [
                    0.1 * read_positive(values, name) * math.log(max(read["factor"], 1.0)) + 1
                    for name in ("mscale", "mscale_all_dim")
                ]
                read["attention_factor"] = scales[0] / scales[1]
        return cls(rope_type=kind, **read)

    def to_dict(self) -> dict[str, Any]:
        """As `rope_scaling` in a `config.json`; values that are None are left out."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def read_rope(values: Mapping[str, Any]) -> tuple[float, RopeScaling | None]:
    """Base and scaling from `rope_theta`, `rope_scaling` (older files) and `rope_parameters` (newer ones)."""
    merged: dict[str, Any] = {}
    thetas = [] if values.get("rope_theta") is None else [read_positive(values, "rope_theta")]
    for name in ("rope_scaling", "rope_parameters"):
        part = values.get(name)
        if part is None:
            continue
        if not isinstance(part, Mapping):
            raise wrong_value(name, "an object", part)
        if part.get("rope_theta") is not None:
            thetas.append(read_positive(part, "rope_theta"))
        clash = [key for key in part if key != "rope_theta" and key in merged and merged[key] != part[key]]
        if clash:
            raise FormatError(f"draft config: rope_scaling and rope_parameters differ in {', '.join(clash)}: keep one")
        merged.update(part)
    if len(set(thetas)) > 1:
        raise FormatError(
            f"draft config: rope_theta is stated more than once, as {' and '.join(map(str, thetas))}: keep one"
        )
    limit = values.get("max_position_embeddings")
    limit = None if limit is None else read_integer(values, "max_position_embeddings")
    if merged.get("partial_rotary_factor", 1) != 1 or (values.get("partial_rotary_factor") or 1) != 1:
        raise FormatError("draft config: partial_rotary_factor is not supported: all of a head must be rotated")
    merged.pop("partial_rotary_factor", None)
    try:
        scaling = RopeScaling.from_dict(merged, limit)
    except ValueError as error:
        raise FormatError(f"draft config: {str(error).removeprefix('draft config: ')}") from None
    return (thetas[0] if thetas else 10000.0), scaling
