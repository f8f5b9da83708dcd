"""`model.generate(..., custom_generate=radar_generate(draft=...))`: RADAR behind transformers' own call."""

from __future__ import annotations

import inspect
from typing import Any

from torch import Tensor

from radar.decoder import RadarDecoder
from radar.errors import UsageError
from radar.generation.hf import CALL_ARGUMENTS, check_argument, run_prepared
from radar.generation.streamers import ended

__all__ = ["RadarGenerate", "radar_generate"]


class RadarGenerate:
    """A function for transformers' `custom_generate=`, made by `radar_generate`.

    Attributes:
        decoder: of the model that was decoded last, made at the first call; None before.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self.decoder: RadarDecoder | None = None

    def __call__(self, model: Any, input_ids: Tensor, seed: int | None = None, **prepared: Any) -> Any:
        """What `model.generate` calls instead of its loop; returns what that would.

        Raises ValueError, by name, for what cannot be honoured.
        """
        if self.decoder is None or self.decoder.model is not model:
            self.decoder = None  # its memory is free before the next one takes its own
            self.decoder = RadarDecoder(model, **self._options)
        streamer = _argument_of_generate("streamer")
        with ended(streamer):
            for name in ("assistant_model", "synced_gpus"):
                check_argument(name, _argument_of_generate(name), CALL_ARGUMENTS[name])
            return run_prepared(self.decoder, input_ids, prepared, streamer=streamer, seed=seed)


def radar_generate(**options: Any) -> RadarGenerate:
    """RADAR as `custom_generate` of a transformers model.

    `model.generate(input_ids, custom_generate=radar_generate(draft="path/to/head"), max_new_tokens=200)` takes every
    argument that `Decoder.generate_ids` takes, but stop strings: transformers keeps its tokenizer to itself, so pass
    `stopping_criteria=[StopStringCriteria(tokenizer, [...])]` instead. Keep the object for the next call: it holds the
    decoder.

    Args:
        options: `draft` and everything else that `RadarDecoder` takes beside the model.

    Raises:
        ValueError: without a draft head.
    """
    if "draft" not in options:
        raise UsageError("pass draft=, the folder of an EAGLE-3 head that was trained for the model")
    return RadarGenerate(options)


def _argument_of_generate(name: str) -> Any:
    """An argument of the `generate` call that we are in.

    transformers takes `streamer` and `assistant_model` for custom functions but does not hand them on. Ignoring them
    would be worse than looking them up where they are.
    """
    frame: Any = inspect.currentframe()
    while frame is not None and not (frame.f_code.co_name == "generate" and "custom_generate" in frame.f_locals):
        frame = frame.f_back
    return None if frame is None else frame.f_locals.get(name)
