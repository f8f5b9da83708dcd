"""What this thread runs as ours: hooks, fused layers and our attention act in that thread alone.

They hang on modules that other threads may run as they are, so each of them asks here first.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from radar.target.cache import StaticKVCache

__all__ = ["Owner", "current_cache", "experts_of", "is_attending", "is_running", "running"]


class Owner:
    """Names what is run.

    Attributes:
        configs: of its attention modules.
        experts: the implementation of its experts (`radar.target.experts`); None: what their config says.
    """

    def __init__(self) -> None:
        self.configs: list[Any] = []
        self.experts: str | None = None

    def reads(self, config: Any) -> bool:
        return any(config is known for known in self.configs)


class _Thread(threading.local):
    owner: Owner | None = None
    cache: StaticKVCache | None = None


_thread = _Thread()


@contextmanager
def running(owner: Owner, cache: StaticKVCache) -> Iterator[None]:
    """Run `owner` in this thread: its rows go to this cache and see it."""
    before = _thread.owner, _thread.cache
    try:
        _thread.owner, _thread.cache = owner, cache
        yield
    finally:
        _thread.owner, _thread.cache = before


def is_attending(config: Any) -> bool:
    """Whether this thread runs the owner of an attention module's config now."""
    return _thread.owner is not None and _thread.owner.reads(config)


def experts_of(config: Any, own: str | None) -> str | None:
    """The implementation that a config's experts use in this thread now; `own`: what the config says of them."""
    owner = _thread.owner
    asks = own in ("grouped_mm", "eager")  # the host, how many rows an expert has: which no graph can hold
    return owner.experts or own if asks and owner is not None and owner.reads(config) else own


def is_running(owner: Owner) -> bool:
    """Whether this thread runs `owner` now."""
    return _thread.owner is owner


def current_cache() -> StaticKVCache:
    """Of what this thread runs."""
    if _thread.cache is None:
        raise RuntimeError("attend: no cache is in use; run the forward inside `running`")
    return _thread.cache
