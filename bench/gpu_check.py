"""On a machine with a GPU: the demo with the Triton kernels, and whether its fp32 text is the CPU's.

`python -m bench.gpu_check` prints a summary and writes `bench/results/gpu_demo.txt` and `bench/results/gpu_check.json`.
Needs nothing but the repository: no install, no network. The tests run on the GPU by `python -m pytest tests`.
"""

import contextlib
import io
import json
import sys
import tempfile
import time
from importlib.resources import files
from pathlib import Path

import torch

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.cli.main import main as radar
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

MAX_NEW_TOKENS = 96
COMMANDS = (
    ["generate", "def fibonacci(n):", "--max-new-tokens", "64"],
    ["generate", "A baker makes 24 rolls an hour. How many rolls does he make in 5 hours?", "--chat"],
    ["bench", "--max-new-tokens", str(MAX_NEW_TOKENS), "--repeats", "3", "--no-progress"],
)


def demo(sink: io.TextIOBase) -> list[int]:
    """What `make demo` runs, in float32 on the GPU; exit statuses."""
    statuses = []
    for arguments in COMMANDS:
        arguments = [*arguments, "--no-compile", "--device", "cuda", "--dtype", "float32"]
        print("$ radar " + " ".join(arguments), file=sink)
        with contextlib.redirect_stdout(sink), contextlib.redirect_stderr(sink):
            statuses.append(radar(arguments))
        print(file=sink)
    return statuses


def texts(device: str, prompts: list[list[int]]) -> dict[str, list[list[int]]]:
    """Output ids of every decoder on one device, in float32, with the same tree everywhere."""
    decoder = RadarDecoder.from_pretrained(
        device=device, dtype=torch.float32, tree=TreeConfig(), max_length=1024, fallback=False
    )
    trained = decoder.policy
    plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=1024)
    out = {"autoregressive": [plain.generate(p, max_new_tokens=MAX_NEW_TOKENS).token_ids for p in prompts]}
    for name, policy in (("EAGLE-3", FixedDepth(8)), ("RADAR", trained)):
        decoder.policy = policy
        out[name] = [decoder.generate(p, max_new_tokens=MAX_NEW_TOKENS).token_ids for p in prompts]
    return out


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    results = Path(__file__).parent / "results"
    started = time.time()
    with tempfile.TemporaryFile("w+") as sink:
        statuses = demo(sink)  # type: ignore[arg-type]
        sink.seek(0)
        (results / "gpu_demo.txt").write_text(sink.read())
    tokenizer = RadarDecoder.from_pretrained(device="cpu").tokenizer
    lines = load_prompts(Path(str(files("radar"))) / "assets" / "prompts.jsonl")
    prompts = [encode_prompt(line, tokenizer) for line in lines]
    gpu, cpu = texts("cuda", prompts), texts("cpu", prompts)
    equal = {name: sum(a == b for a, b in zip(gpu[name], cpu[name], strict=True)) for name in gpu}
    report = {
        "command": "python -m bench.gpu_check",
        "machine": describe_machine(torch.device("cuda")),
        "prompts": len(prompts),
        "texts_equal_to_the_cpu": equal,
        "decoders_equal_on_the_gpu": gpu["autoregressive"] == gpu["EAGLE-3"] == gpu["RADAR"],
        "demo_exit_statuses": statuses,
        "seconds": round(time.time() - started, 1),
    }
    (results / "gpu_check.json").write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    same = all(count == len(prompts) for count in equal.values()) and report["decoders_equal_on_the_gpu"]
    return 0 if same and not any(statuses) else 1


if __name__ == "__main__":
    sys.exit(main())
