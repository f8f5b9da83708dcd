"""One tree of exceptions: what the caller did wrong is told from what went wrong here.

    RadarError
      UsageError          the caller's mistake: says what was wrong, what was expected and what to do (a ValueError)
        FormatError       a file that is not what it should be
        NotFoundError     a file, folder or device that is not there (a FileNotFoundError too)
      BusyError           the decoder is asked from inside of one of its own rounds (a RuntimeError)
      NumericalError      scores that are not numbers (an ArithmeticError)
      BatchError          some of several prompts have failed; holds the texts of the others
      RanksError          the processes that share a model do not go on together

Every other exception that comes out of this package is a bug of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = [
    "BatchError", "BusyError", "FormatError", "NotFoundError", "NumericalError", "RadarError", "RanksError",
    "UsageError",
]  # fmt: skip


class RadarError(Exception):
    """Base of all."""


class UsageError(RadarError, ValueError):
    """What was asked for cannot be done; the message says what can."""


class FormatError(UsageError):
    """A file that cannot be read as what it should be."""


class NotFoundError(UsageError, FileNotFoundError):
    """Something named is not there."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""


class BusyError(RadarError, RuntimeError):
    """Asked for a text from inside of a round of the same decoder."""


class NumericalError(RadarError, ArithmeticError):
    """The target's scores hold NaN or no finite number, so there is no token to choose."""


class RanksError(RadarError, RuntimeError):
    """The ranks of a job have parted, or one has ended: the job has to be started again."""


class BatchError(RadarError):
    """Some of several prompts have failed; the others have their texts.

    Attributes:
        outputs: in the prompts' order, None for those that failed.
        errors: what failed, by the prompt's number from 0.
    """

    def __init__(self, outputs: Sequence[Any], errors: Mapping[int, Exception]) -> None:
        super().__init__(outputs, errors)
        self.outputs, self.errors = list(outputs), dict(errors)

    def __str__(self) -> str:
        first = min(self.errors)
        error = f"{type(self.errors[first]).__name__}: {self.errors[first]}"
        return (
            f"{len(self.errors)} of {len(self.outputs)} prompts failed, the first is prompt {first}: {error} (texts "
            "are in .outputs, errors in .errors)"
        )
