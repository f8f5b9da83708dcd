"""The folder that `radar fit` leaves: a head, a policy for it and the beams of its trees, and the costs that these were
chosen by."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from radar.config import TreeConfig
from radar.errors import FormatError, UsageError
from radar.files import replacing
from radar.policy.base import FixedDepth, StopPolicy, Threshold
from radar.policy.by_mass import NodesByMass
from radar.policy.lstm import RadarPolicy

__all__ = ["AUTO", "EAGLE_BEAMS", "FITTED_FILE", "Fitted", "policy_of", "read_fitted", "unfolded", "write_fitted"]

FITTED_FILE, UNFINISHED = "fit.json", "stages"
AUTO = "auto"
FORMAT, VERSIONS = "radar-fit", (1, 2)  # the second of other beams than EAGLE-3's, of which earlier releases know none
EAGLE_BEAMS = TreeConfig().tree_top_k


class Fitted(NamedTuple):
    """What a decoder takes from such a folder.

    Attributes:
        costs: a file, for `radar train-policy` and `radar evaluate`; of trees of these beams.
        beams: nodes that a draft call expands, a tree's `tree_top_k`.
    """

    draft: Path
    policy: StopPolicy
    costs: Path
    beams: int


def write_fitted(
    folder: str | os.PathLike[str],
    *,
    draft: str,
    policy: Mapping[str, Any],
    costs: str,
    about: Mapping[str, Any],
    beams: int = EAGLE_BEAMS,
) -> None:
    """Say what is where: names in the folder, a policy as `policy_of` takes it, the beams of its trees, and facts of
    JSON types."""
    values: dict[str, Any] = {"format": FORMAT, "version": VERSIONS[beams != EAGLE_BEAMS], "draft": draft}
    values |= {"policy": dict(policy), "costs": costs, "beams": beams}
    with replacing(folder) as place:
        (place / FITTED_FILE).write_text(
            json.dumps({**values, "about": dict(about)}, indent=2) + "\n", encoding="utf-8"
        )


def read_fitted(folder: str | os.PathLike[str]) -> Fitted | None:
    """What the folder holds; None: it is none of `radar fit`.

    Raises:
        UsageError: the fit has not ended.
        FormatError: `fit.json` is not what `write_fitted` wrote.
    """
    path = Path(folder)
    file = path / FITTED_FILE
    if not file.is_file():
        if (path / UNFINISHED).is_dir():
            raise UsageError(
                f"{path} is of a `radar fit` that has not ended: give the same command again, which goes on with it"
            )
        return None
    try:
        values = json.loads(file.read_text(encoding="utf-8"))
        if values["format"] != FORMAT or values["version"] not in VERSIONS:
            raise FormatError(f"{file} is not of the format {FORMAT}, version 1 or 2: fit the model again")
        beams = TreeConfig(tree_top_k=values.get("beams", EAGLE_BEAMS)).tree_top_k  # a fit of before names none
        return Fitted(path / values["draft"], policy_of(path, values["policy"]), path / values["costs"], beams)
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, FormatError | UsageError):
            raise
        raise FormatError(f"{file} is damaged ({error}): give the same `radar fit` again") from error


def unfolded(draft: Any, policy: Any) -> tuple[Any, Any, Fitted | None]:
    """A decoder's `draft` and `policy`: where the first is such a folder, which is the third then, its head, and for
    "auto" the policy that it has kept, a rule or a network. None: nothing was fitted."""
    fitted = read_fitted(draft) if isinstance(draft, str | os.PathLike) else None
    if fitted is None:
        return draft, policy, None
    return fitted.draft, fitted.policy if policy in (None, AUTO) else policy, fitted


def policy_of(folder: Path, told: Mapping[str, Any]) -> StopPolicy:
    """The policy told as {"calls": 8}, {"mass": 0.2}, {"mass": 0.2, "nodes": [16, 60], "prices": [0, 0.3]}, or
    {"network": its folder in this one}."""
    match dict(told):
        case {"calls": calls, **rest} if not rest:
            return FixedDepth(calls)
        case {"mass": mass, **rest} if not rest:
            return Threshold(mass)
        case {"mass": mass, "nodes": nodes, "prices": prices, **rest} if not rest:
            return NodesByMass(Threshold(mass), nodes, prices)
        case {"network": name, **rest} if not rest:
            return RadarPolicy(folder / name)
    raise ValueError(f"policy {dict(told)!r}")
