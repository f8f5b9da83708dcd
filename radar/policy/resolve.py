"""What a caller may give as a stop policy, and the policy that it means."""

from __future__ import annotations

import os

from radar.errors import UsageError
from radar.policy.base import StopPolicy, Threshold
from radar.policy.fitted import AUTO
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork

__all__ = ["resolve_policy"]


def resolve_policy(value: object) -> StopPolicy:
    """The policy that `value` means: itself, a trained one's folder or file, or None or "auto" for `Threshold()`, where
    no `radar fit` has chosen (`unfolded`).

    Raises:
        UsageError: it is something else; the message says what may have been meant.
        NotFoundError, FormatError: a path where no policy is.
    """
    if value is None or value == AUTO:
        return Threshold()
    if isinstance(value, str | os.PathLike):
        return RadarPolicy(value)
    missing = [name for name in ("bind", "reset", "stop") if not callable(getattr(value, name, None))]
    if not missing and not isinstance(value, type):
        return value  # type: ignore[return-value]
    lacks = "" if isinstance(value, type) else f", which lacks {', '.join(missing)}"
    raise UsageError(
        "policy must be a folder or file of a trained policy, a policy such as FixedDepth(8), or None for Threshold(); "
        f"got {value!r}{lacks}{_meant(value)}"
    )


def _meant(value: object) -> str:
    if isinstance(value, type):
        return f": an object is needed, {value.__name__}(...)"
    if isinstance(value, int) and not isinstance(value, bool) and value > 0:
        return f": did you mean FixedDepth({value})?"
    if isinstance(value, float) and 0 <= value <= 1:
        return f": did you mean Threshold({value:g})?"
    if isinstance(value, PolicyNetwork):
        return ": did you mean RadarPolicy(network)?"
    return ""
