"""transformers' own preparation of a call: arguments merged with the model's config, processors and criteria built."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, cast

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin, __version__

from radar.errors import UsageError

__all__ = ["CONFIG_NAMES", "Prepared", "is_stock", "prepare"]

# every attribute that this transformers knows
CONFIG_NAMES = frozenset(name for name in vars(cast("Any", GenerationConfig)()) if not name.startswith("_"))

_WARNS = tuple(map(int, __version__.split(".")[:2])) < (5, 20)  # of ids on the CPU and a model that is elsewhere


@dataclass(frozen=True)
class Prepared:
    """What transformers hands to a `custom_generate` function.

    Attributes:
        input_ids: [1, P] int64.
        config: the merged generation config.
        processors: of scores, in order; temperature and filters among them.
        criteria: that end the text, its limit and end tokens among them.
        for_model: arguments of the forward.
    """

    input_ids: Tensor
    config: Any
    processors: tuple[Any, ...]
    criteria: tuple[Any, ...]
    for_model: Mapping[str, Any]

    @staticmethod
    def of(input_ids: Tensor, prepared: Mapping[str, Any]) -> Prepared:
        """Sort the arguments of a `custom_generate` function."""
        names = ("generation_config", "logits_processor", "stopping_criteria")
        rest = {name: value for name, value in prepared.items() if name not in names}
        config, processors, criteria = (prepared[name] for name in names)
        return Prepared(input_ids, config, tuple(processors), tuple(criteria), rest)


def prepare(model: Any, input_ids: Tensor | None, arguments: Mapping[str, Any]) -> Prepared:
    """Let `model.generate` prepare a call, and stop it where its loop would begin.

    So no default, rule or processor of transformers is written down here a second time. It takes 1 to 2 ms.

    Args:
        model: with transformers' `generate`.
        input_ids: [1, P], on the model's device, or, if it `is_stock`, on the CPU: then nothing runs on that device or
            waits for it, and what processors hold is on the CPU, too. None: `generate` starts from the config's
            bos_token_id.
        arguments: of `generate`.

    Raises:
        UsageError: for what transformers refuses.
    """
    found: list[Prepared] = []

    def stop_here(model: Any, input_ids: Tensor, **prepared: Any) -> Tensor:
        found.append(Prepared.of(input_ids, prepared))
        return input_ids

    try:
        if _WARNS and input_ids is not None and input_ids.device != model.device:
            model = _on_host(model)
        model.generate(inputs=input_ids, custom_generate=stop_here, **arguments)
    except torch.OutOfMemoryError:
        raise
    except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        # nothing has run but checks of the arguments and constructors that got them
        raise UsageError(f"transformers does not take these arguments: {error}") from error
    return found[0]


def is_stock(model: Any) -> bool:
    """Whether its `generate` is transformers' own, which runs nothing of the model before its loop."""
    return type(model).generate is GenerationMixin.generate and "generate" not in vars(model)


def _on_host(model: Any) -> Any:
    """The same model, state and all, that says it is on the CPU."""
    twin: Any = object.__new__(_host_class(type(model)))  # type: ignore[arg-type]
    object.__setattr__(twin, "__dict__", model.__dict__)
    return twin


class _Unannounced:
    """Before a class among the bases of another one: nothing is told of it."""

    def __init_subclass__(cls) -> None:
        pass


@lru_cache
def _host_class(kind: type) -> type:
    own = {"device": property(lambda _: torch.device("cpu")), "__module__": kind.__module__}
    return type(kind.__name__, (_Unannounced, kind), own)
