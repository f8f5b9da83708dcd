"""The command line."""

from radar.cli.main import main

__all__ = ["main"]
