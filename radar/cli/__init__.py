"""The command line: `main.py` has the table of commands, and each command is a file of its own."""

from radar.cli.main import main

__all__ = ["main"]
