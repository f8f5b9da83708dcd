"""Make the embedded default pair in one command: target, its own text, draft head.

`python -m bench.lab.make_default --data .lab/data --work .lab/run --out OUT --target-seconds 240 --generate-seconds 40
--draft-seconds 190`. Writes OUT/target, OUT/draft and OUT/log.txt. Every stage is a process of its own: what an earlier
stage wrote stays when a later one fails, and the head is trained without the target's text if there is none.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import TextIO

START = time.monotonic()
SLACK = 75.0  # seconds a stage may take beyond its budget: imports, compilation, saving, samples


def log(sink: TextIO, text: str) -> None:
    line = f"{time.monotonic() - START:7.1f}  {text}"
    print(line, flush=True)
    sink.write(line + "\n")
    sink.flush()


def stage(sink: TextIO, name: str, arguments: list[str], budget: float) -> bool:
    """Run `python -m bench.lab.<name>`, its output stamped into the log; kill it well after its budget."""
    log(sink, f"== {name} {' '.join(arguments)}")
    command = [sys.executable, "-u", "-m", f"bench.lab.{name}", *arguments]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace")
    timer = threading.Timer(budget + SLACK, process.kill)
    timer.start()
    assert process.stdout is not None
    for line in process.stdout:
        log(sink, f"{name}: {line.rstrip()}")
    code = process.wait()
    timer.cancel()
    log(sink, f"== {name} {'done' if code == 0 else f'FAILED with exit status {code}'}")
    return code == 0


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(".lab/data"))
    parser.add_argument("--work", type=Path, default=Path(".lab/run"), help="for the token stream between the stages")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--target-seconds", type=float, default=240.0)
    parser.add_argument("--generate-seconds", type=float, default=40.0)
    parser.add_argument("--draft-seconds", type=float, default=190.0)
    parser.add_argument("--total-seconds", type=float, default=570.0, help="the head gets less time if this is near")
    parser.add_argument("--taps", help="hidden-state indices of the head, for instance 2,4,6")
    parser.add_argument("--target", type=Path, help="take this finished target instead of training one")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer's files out of OUT/target")
    parser.add_argument("--smoke", action="store_true", help="tiny sizes, for a CPU")
    args = parser.parse_args(argv)
    args.out.mkdir(parents=True, exist_ok=True)
    args.work.mkdir(parents=True, exist_ok=True)
    data, text = ["--data", str(args.data)], args.work / "on_policy.npy"
    text.unlink(missing_ok=True)
    target = args.target or args.out / "target"
    with (args.out / "log.txt").open("w", encoding="utf8") as sink:
        if args.target is None:
            extra = ["--smoke"] * args.smoke + ["--no-tokenizer"] * args.no_tokenizer
            settings = [*data, "--out", str(target), "--seconds", str(args.target_seconds), *extra]
            stage(sink, "train_target", settings, args.target_seconds)
        if not (target / "model.safetensors").is_file():
            log(sink, "no target: nothing to train a head for")
            return 1
        extra = ["--batch", "8", "--new-tokens", "32"] if args.smoke else []
        settings = [*data, "--target", str(target), "--out", str(text), "--seconds", str(args.generate_seconds), *extra]
        stage(sink, "on_policy", settings, args.generate_seconds)
        extra = ["--batch", "4", "--length", "64"] if args.smoke else []
        extra += ["--taps", args.taps] if args.taps else ["--taps", "1,2,3"] if args.smoke else []
        settings = [*data, "--target", str(target), "--on-policy", str(text), "--out", str(args.out / "draft")]
        left = args.total_seconds - (time.monotonic() - START) - SLACK
        seconds = max(10.0, min(args.draft_seconds, left))
        done = stage(sink, "train_head", [*settings, "--seconds", f"{seconds:.0f}", *extra], seconds)
    return 0 if done else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
