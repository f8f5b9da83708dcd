"""What a server allows."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["Limits"]


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What one request, and all of them together, may take.

    Attributes:
        max_waiting: texts that may wait for a row; more are refused by 429.
        max_body: bytes of a request.
        max_tokens: of one text; None: what fits behind its prompt.
        max_seconds: for a body to come, and from then to the answer's last byte.
        shutdown_seconds: that texts under way have to end in when the server is told to.
    """

    max_waiting: int = 64
    max_body: int = 1 << 20
    max_tokens: int | None = None
    max_seconds: float = 600.0
    shutdown_seconds: float = 30.0
