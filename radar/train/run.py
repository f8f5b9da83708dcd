"""What a training leaves in its folder to go on from."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from radar.errors import UsageError
from radar.files import replacing

__all__ = ["ANEW", "OtherRun", "Run"]

ANEW = "another folder, or resume=False (--restart) to begin anew"


class OtherRun(UsageError):
    """A state in the folder that cannot be gone on with: it is damaged, or of other settings."""


class Run:
    """A network in training; the state in its folder holds weights, optimizer, and the attributes named in `KEPT`.

    Args:
        folder: of the training; made if it is not there.
        settings: what a state has to be of, JSON types.
    """

    KEPT: tuple[str, ...]

    def __init__(self, folder: Path, settings: Mapping[str, Any], network: nn.Module, optimizer: torch.optim.Optimizer):
        self.folder, self.checkpoint = folder, folder / "training.pt"
        self.settings: dict[str, Any] = json.loads(json.dumps(settings))  # as a file gives them back
        self.network, self.optimizer = network, optimizer

    def save(self) -> None:
        """Write the state, whole or not at all."""
        state = {name: getattr(self, name) for name in ("settings", *self.KEPT)}
        state |= {"network": self.network.state_dict(), "optimizer": self.optimizer.state_dict()}
        with replacing(self.folder) as place:
            torch.save(state, place / self.checkpoint.name)

    def load(self) -> None:
        """Take up the state in the folder. ValueError: it is damaged, or of other settings."""
        state = self.read(self.checkpoint, ("network", "optimizer", *self.KEPT))
        self.network.load_state_dict(state["network"])
        self.optimizer.load_state_dict(state["optimizer"])
        for name in self.KEPT:
            setattr(self, name, state[name])

    def read(self, file: Path, names: tuple[str, ...]) -> dict[str, Any]:
        """These parts of a state, or of a JSON file with the settings of its training."""
        try:
            json_file = file.suffix == ".json"
            found = json.loads(file.read_text()) if json_file else torch.load(file, "cpu", weights_only=True)
            saved, contents = dict(found["settings"]), {name: found[name] for name in names}
        except Exception as error:  # torch raises a dozen kinds for foreign and torn files
            raise OtherRun(f"{file} cannot be read, it is no state of this training: use {ANEW}") from error
        keys = [key for key in sorted(saved | self.settings) if saved.get(key) != self.settings.get(key)]
        if different := [f"{key} {saved.get(key)!r} there, {self.settings.get(key)!r} here" for key in keys]:
            raise OtherRun(f"{file} belongs to a run with other settings ({', '.join(different)}): use those, {ANEW}")
        return contents
