"""What is served: decoders by name."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable
from typing import Any

from radar.serve.errors import ApiError
from radar.serve.token_names import TokenNames

__all__ = ["ServedModel", "ServedModels"]


class ServedModel:
    """A decoder under a name.

    Args:
        name: what requests call it.
        decoder: with a tokenizer.

    Attributes:
        name, decoder: as given.
        created: seconds since 1970.
        names: of its tokens.
        turn: of texts on a decoder of one row; None: it has several.
    """

    def __init__(self, name: str, decoder: Any) -> None:
        self.name, self.decoder, self.created = name, decoder, int(time.time())
        self.names = TokenNames(decoder.tokenizer)
        self.turn = asyncio.Semaphore(1) if decoder.max_batch_size == 1 else None

    def card(self) -> dict[str, Any]:
        """What `/v1/models` says of it."""
        return {
            "id": self.name,
            "object": "model",
            "created": self.created,
            "owned_by": "radar",
            "max_model_len": self.decoder.max_length,
        }


class ServedModels:
    """All of them.

    Args:
        models: the first is what others are compared with.
    """

    def __init__(self, models: Iterable[ServedModel]) -> None:
        self._models = {model.name: model for model in models}

    def __iter__(self) -> Any:
        return iter(self._models.values())

    @property
    def first(self) -> ServedModel:
        return next(iter(self._models.values()))

    def of(self, name: str) -> ServedModel:
        """Raises ApiError, 404, if there is none of that name."""
        found = self._models.get(name)
        if found is None:
            names = ", ".join(self._models)
            raise ApiError(
                404, f"The model {name!r} does not exist: take one of {names}", param="model", code="model_not_found"
            )
        return found
