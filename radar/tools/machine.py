"""What a figure was measured on: hardware, software, commit."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import version
from pathlib import Path

import torch

__all__ = ["describe_machine", "device_name"]


def device_name(device: torch.device) -> str:
    """The hardware's name: what a cost table is measured on."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _processor()


def describe_machine(device: torch.device) -> dict[str, str]:
    """Hardware, software and commit, for a result file. Threads: on a GPU the machine's, not how many this run uses."""
    threads = torch.get_num_threads() if device.type == "cpu" else os.cpu_count()
    return {
        "hardware": f"{device_name(device)}, {threads} CPU threads",
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "commit": _commit(),
    }


def _processor() -> str:
    """The CPU's name, where Linux tells it."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str:
    """What is checked out of this repository; "unknown" for an installed package, in a repository of others too."""
    root = Path(__file__).resolve().parents[2]
    command = ["git", "-C", str(root), "rev-parse", "--show-toplevel", "HEAD"]
    try:
        git = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.SubprocessError):
        return "unknown"
    top, _, commit = git.stdout.strip().partition("\n")
    return commit if git.returncode == 0 and Path(top) == root else "unknown"
