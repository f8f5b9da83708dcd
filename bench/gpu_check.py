"""On a machine with a GPU: are the demo's float32 texts the CPU's, of every decoder?

`python -m bench.gpu_check` prints and writes `bench/results/checks/gpu_check.json`. Needs nothing but the repository.
"""

import json
import sys
from importlib.resources import files
from pathlib import Path

import torch

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

OUT = Path(__file__).parent / "results" / "checks" / "gpu_check.json"
MAX_NEW_TOKENS = 96


def texts(device: str) -> dict[str, list[list[int]]]:
    """Output ids of every decoder on one device, in float32, with the same tree everywhere."""
    decoder = RadarDecoder.from_pretrained(
        device=device, dtype=torch.float32, tree=TreeConfig(), max_length=1024, fallback=False
    )
    trained = decoder.policy
    lines = load_prompts(Path(str(files("radar"))) / "assets" / "prompts.jsonl")
    prompts = [encode_prompt(line, decoder.tokenizer) for line in lines]
    plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=1024)
    out = {
        "autoregressive": [plain.generate(p, max_new_tokens=MAX_NEW_TOKENS, do_sample=False).token_ids for p in prompts]
    }
    for name, policy in (("EAGLE-3", FixedDepth(8)), ("RADAR", trained)):
        decoder.policy = policy
        out[name] = [decoder.generate(p, max_new_tokens=MAX_NEW_TOKENS, do_sample=False).token_ids for p in prompts]
    return out


def main() -> int:
    if not torch.cuda.is_available():
        print("no CUDA device here", file=sys.stderr)
        return 2
    gpu, cpu = texts("cuda"), texts("cpu")
    report = {
        "command": "python -m bench.gpu_check",
        "machine": describe_machine(torch.device("cuda")),
        "prompts": len(gpu["RADAR"]),
        "texts_equal_to_the_cpu": {n: sum(a == b for a, b in zip(gpu[n], cpu[n], strict=True)) for n in gpu},
        "decoders_equal_on_the_gpu": gpu["autoregressive"] == gpu["EAGLE-3"] == gpu["RADAR"],
    }
    OUT.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 0 if gpu == cpu and report["decoders_equal_on_the_gpu"] else 1


if __name__ == "__main__":
    sys.exit(main())
