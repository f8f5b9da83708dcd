"""One tree of exceptions: what the caller did wrong is told from what went wrong here.

    RadarError
      UsageError          the caller's mistake: says what was wrong, what was expected and what to do (a ValueError)
        FormatError       a file that is not what it should be
        NotFoundError     a file, folder or device that is not there (a FileNotFoundError too)
      BusyError           the decoder is asked from inside of one of its own rounds (a RuntimeError)
      NumericalError      scores that are not numbers (an ArithmeticError)

Every other exception that comes out of this package is a bug of it.
"""

from __future__ import annotations

__all__ = ["BusyError", "FormatError", "NotFoundError", "NumericalError", "RadarError", "UsageError"]


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
