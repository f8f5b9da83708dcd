"""`radar --version`: what is installed, without importing any of it."""

from __future__ import annotations

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

__all__ = ["VersionAction", "versions"]

PACKAGES = ("torch", "triton", "transformers")


def versions() -> str:
    """One line: this package and what it stands on."""
    parts = [f"{name} {_version(name)}" for name in PACKAGES]
    return f"radar {_version('radar-decoding')} (Python {platform.python_version()}, {', '.join(parts)})"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"


class VersionAction(argparse.Action):
    """Looks the versions up when it is asked, not at every start."""

    def __init__(self, option_strings: list[str], dest: str, **options: Any) -> None:
        super().__init__(option_strings, argparse.SUPPRESS, nargs=0, help="show versions and leave")

    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(versions())
        parser.exit()
