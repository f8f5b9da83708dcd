"""A model's attention as ours for a time, and its experts: by the class of its configs, which others may share."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import nn

__all__ = ["attending", "attention_configs"]

_users: dict[int, set[object]] = {}  # who attends by a config now, by its id; two models may share one
_changing = threading.Lock()


def attention_configs(model: nn.Module) -> list[Any]:
    """The configs that say how modules attend: one, unless a layer came from another model."""
    found = {id(part.config): part.config for part in model.modules() if hasattr(part, "config")}
    return [config for config in found.values() if hasattr(type(config), "_attn_implementation")]


@contextmanager
def attending(
    user: object, configs: Sequence[Any], name: Callable[[Any], str | None],
    experts: Callable[[Any, str | None], str | None],
) -> Iterator[None]:  # fmt: skip
    """Let `name(config)` say which attention a config's modules use, None: the config's own.

    If Ctrl-C leaves a class behind, it reads as the stock one outside of a run, and the user's next run takes it back.

    Args:
        user: not within `attending` yet.
        configs: of the modules.
        name: asked at every forward, in any thread; the same function for all users.
        experts: so; what the experts use, given the config and what that says.
    """
    try:
        with _changing:
            for config in configs:
                _users.setdefault(id(config), set()).add(user)
                kind: Any = type(config)
                config.__class__ = _named_by(kind, name, experts)
        yield
    finally:
        with _changing:
            for config in configs:
                users = _users.get(id(config), set())
                users.discard(user)
                if not users:
                    _users.pop(id(config), None)
                    config.__class__ = getattr(type(config), "radar_stock", type(config))


@functools.cache
def _named_by(stock: Any, name: Callable[[Any], str | None], experts: Callable[[Any, str | None], str | None]) -> type:
    if hasattr(stock, "radar_stock"):
        return stock  # type: ignore[no-any-return]
    own: Any = stock._attn_implementation
    own_experts: Any = stock._experts_implementation

    def implementation(config: Any) -> Any:
        return name(config) or own.fget(config)

    members = {
        "_attn_implementation": property(implementation, own.fset),
        "_experts_implementation": property(lambda config: experts(config, own_experts.fget(config)), own_experts.fset),
        "radar_stock": stock,
        "__module__": stock.__module__,
        "__qualname__": stock.__qualname__,
    }
    return type(stock.__name__, (stock,), members)
