"""`model.generate(..., custom_generate=radar_generate(draft=...))`: RADAR behind transformers' own call."""

from __future__ import annotations

import inspect
import threading
from typing import Any

from torch import Tensor

from radar.decoder import RadarDecoder
from radar.errors import UsageError
from radar.generation.arguments import CALL_ARGUMENTS, check_argument
from radar.generation.hf import call_of_prepared
from radar.generation.streamers import ended
from radar.target.bound import BoundModel
from radar.target.checks import stock_model

__all__ = ["RadarGenerate", "radar_generate"]


class RadarGenerate:
    """A function for transformers' `custom_generate=`, made by `radar_generate`.

    Attributes:
        decoder: of the model that was decoded last, made at the first call; None before.
    """

    def __init__(self, options: dict[str, Any]) -> None:
        self._options = options
        self._making = threading.Lock()
        self.decoder: RadarDecoder | None = None

    def __reduce__(self) -> tuple[type[RadarGenerate], tuple[dict[str, Any]]]:
        """A copy makes a decoder of its own."""
        return RadarGenerate, (self._options,)

    @property
    def __signature__(self) -> inspect.Signature:
        """What `inspect.signature` finds.

        transformers reads the call's `tokenizer`, which stop strings need, and then keeps of the call only what the
        function's signature names: the tokenizer is gone by then. It asks for the signature in between, so that is
        where the tokenizer goes back among the arguments.
        """
        caller = _caller("_extract_generation_mode_kwargs", "generation_mode_kwargs")
        if caller is not None:
            found = caller["generation_mode_kwargs"].get("tokenizer")
            if found is not None:
                caller["kwargs"].setdefault("tokenizer", found)
        return inspect.signature(self.__call__)

    def __call__(
        self, model: Any, input_ids: Tensor, seed: int | None = None, tokenizer: Any = None, **prepared: Any
    ) -> Any:
        """What `model.generate` calls instead of its loop; returns what that would.

        Raises UsageError, by name, for what cannot be honoured.
        """
        asked = _caller("generate", "custom_generate") or {}
        with ended(streamer := asked.get("streamer")):
            decoder = self._decoder_of(model)
            for name in ("assistant_model", "synced_gpus"):
                check_argument(name, asked.get(name), CALL_ARGUMENTS[name])
            call = call_of_prepared(input_ids, prepared, decoder.context(), seed=seed, streamer=streamer)
            return decoder.answer(call, streamer, put_prompt=False)

    def _decoder_of(self, model: Any) -> RadarDecoder:
        model = stock_model(model)
        BoundModel.of(model).turn.check()  # who makes a decoder may wait for it
        with self._making:
            decoder = self.decoder
            if decoder is None or decoder.model is not model:
                self.decoder = decoder = None  # its memory is free before the next one takes its own
                self.decoder = decoder = RadarDecoder(model, **self._options)
            return decoder


def radar_generate(**options: Any) -> RadarGenerate:
    """RADAR as `custom_generate` of a transformers model.

    `model.generate(input_ids, custom_generate=radar_generate(draft="path/to/head"), max_new_tokens=200)` takes every
    argument that `Decoder.generate_ids` takes. Keep the object for the next call: it holds the decoder.

    Args:
        options: `draft` and everything else that `RadarDecoder` takes beside the model.

    Raises:
        UsageError: without a draft head.
    """
    if "draft" not in options:
        raise UsageError("pass draft=, the folder of an EAGLE-3 head that was trained for the model")
    return RadarGenerate(options)


def _caller(function: str, variable: str) -> dict[str, Any] | None:
    """The variables of the nearest function of that name and with that variable that we are in.

    transformers takes `streamer`, `assistant_model` and `tokenizer` for custom functions but does not hand them on.
    Ignoring them would be worse than looking them up where they are.
    """
    frame: Any = inspect.currentframe()
    while frame is not None and not (frame.f_code.co_name == function and variable in frame.f_locals):
        frame = frame.f_back
    return None if frame is None else frame.f_locals
