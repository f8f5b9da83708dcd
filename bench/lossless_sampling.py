"""Is sampled text the same for plain decoding and for every policy and tree? On the embedded pair, in float32.

`python -m bench.lossless_sampling` writes `bench/results/lossless_sampling.json`; exit status 1 if any text differs.
"""

import itertools
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, Threshold, TreeConfig
from radar.decoder import default_device
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

NEW_TOKENS = 32
TEMPERATURES = (0.3, 0.7, 1.0, 1.5)
FILTERS: tuple[dict[str, Any], ...] = ({"top_p": 0.8}, {"top_k": 20}, {"repetition_penalty": 1.2})


def main() -> int:
    device = default_device()
    options: dict[str, Any] = {"device": device, "dtype": torch.float32, "max_length": 512, "fallback": False}
    radar = RadarDecoder.from_pretrained(**options)
    contenders = {}
    for nodes, policy in ((12, FixedDepth(3)), (32, Threshold(0.2)), (60, radar.policy)):
        contenders[f"{policy!r}, {nodes} nodes"] = RadarDecoder.from_pretrained(
            policy=policy, tree=TreeConfig(total_tokens=nodes), **options
        )
    plain = AutoregressiveDecoder(radar.model, tokenizer=radar.tokenizer, max_length=512)
    lines = load_prompts(Path(str(files("radar"))) / "assets" / "prompts.jsonl", limit=18)
    prompts = [encode_prompt(line, radar.tokenizer) for line in lines]
    combinations = list(itertools.product(prompts, TEMPERATURES, FILTERS))
    different: dict[str, list[int]] = {name: [] for name in contenders}
    texts = set()
    for number, (prompt, temperature, chosen) in enumerate(tqdm(combinations, desc="texts")):
        sampling = SamplingParams(temperature=temperature, seed=number, **chosen)
        expected = plain.generate(prompt, max_new_tokens=NEW_TOKENS, sampling=sampling).token_ids
        texts.add(tuple(expected))
        for name, decoder in contenders.items():
            if decoder.generate(prompt, max_new_tokens=NEW_TOKENS, sampling=sampling).token_ids != expected:
                different[name].append(number)
    report = {
        "command": "python -m bench.lossless_sampling",
        "machine": describe_machine(device),
        "combinations": len(combinations),
        "temperatures": TEMPERATURES,
        "filters": FILTERS,
        "prompts": len(prompts),
        "new_tokens": NEW_TOKENS,
        "different_texts": different,
        "distinct_texts": len(texts),
    }
    path = Path(__file__).parent / "results" / "lossless_sampling.json"
    path.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report, indent=1))
    return 1 if any(different.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
