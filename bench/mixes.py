"""Is a text the same in any company? Random mixes of requests on the rows of one engine, each against itself alone.

`python -m bench.mixes --mixes 200 --prompts FILES --out FILE`: 1 to 32 rows, prompts of 1 to 2,000 tokens, parameters
and seeds of every kind, texts that join at random rounds and some that are cancelled. The embedded pair in float32 on a
CPU; on a GPU at the shapes of Llama-3.1-8B in bfloat16.
"""

import argparse
import json
import random
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.widen import widen
from bench.shapes import LLAMA_8B
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.engine.prefill import chunk_sizes
from radar.engine.round_rows import RoundRows
from radar.generation.batch import Batch
from radar.generation.request import Request
from radar.generation.sequence import Sequence
from radar.target.model import TargetModel
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

ROWS, LONGEST, TOKENS = 32, 2000, 48


def request_of(rng: random.Random, text: list[int], ends: frozenset[int]) -> Request:
    """A prompt from anywhere in `text`, and parameters of some kind."""
    length = min(LONGEST, int(2 ** rng.uniform(0, 11)))
    begin = rng.randrange(len(text) - length)
    sampling = rng.choice(
        [
            SamplingParams(),
            SamplingParams(temperature=rng.choice([0.5, 1.0]), seed=rng.randrange(1000)),
            SamplingParams(temperature=0.8, top_p=0.9, top_k=rng.choice([0, 40]), seed=rng.randrange(1000)),
            SamplingParams(temperature=1.0, min_p=0.05, seed=rng.randrange(1000)),
            SamplingParams(repetition_penalty=1.3),
            SamplingParams(temperature=1.0, logit_bias={text[begin]: 3.0, text[begin + 1]: -5.0}, seed=1),
        ]
    )
    return Request(text[begin : begin + length], rng.randint(1, TOKENS), sampling, ends)


def mix(engine: Any, rng: random.Random, requests: list[Request]) -> list[tuple[list[int], bool]]:
    """Each request's tokens, and whether it came to its end."""
    batch, texts, device = Batch(engine), [], engine.target.device
    rows = rng.randint(1, ROWS)
    while len(texts) < len(requests) or batch.has_work:
        room = max(0, rows - sum(not text.has_ended for text in texts))
        for request in requests[len(texts) : len(texts) + min(room, rng.choice([0, 1, 1, 3, 8]))]:
            texts.append(Sequence(request, lambda _: None, lambda _: None, device))
            batch.add(texts[-1])
        if texts and rng.random() < 0.02:
            rng.choice(texts).close()
        batch.step()
    return [(text.token_ids, text.finish_reason in ("stop", "length")) for text in texts]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--prompts", type=Path, nargs="+", required=True)
    parser.add_argument("--mixes", type=int, default=200)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    graphs, dtype = device.type == "cuda", torch.bfloat16 if device.type == "cuda" else torch.float32
    small = RadarDecoder.from_pretrained(device=device, dtype=dtype)
    pair = widen(small.model, small.draft, LLAMA_8B, device=device, dtype=dtype) if graphs else small
    pair.model.config.max_position_embeddings = LONGEST + TOKENS  # angles are computed, whatever the position
    lines = [line for file in args.prompts for line in load_prompts(file, limit=200)]
    text = [token for line in lines for token in encode_prompt(line, small.tokenizer)]
    sizes: dict[str, Any] = {"max_length": LONGEST + TOKENS, "max_rows": max(chunk_sizes(device))}
    tree = TreeConfig(total_tokens=60 if graphs else 32)
    with torch.inference_mode():
        taps = pair.draft.config.eagle_aux_hidden_state_layer_ids
        target = TargetModel(pair.model, tap_layers=taps, batch_size=ROWS + 1, **sizes)
        embed = target.embed_tokens if pair.draft.embed_tokens is None else pair.draft.embed_tokens
        drafter = Eagle3Drafter(pair.draft, embed, tree, batch_size=ROWS + 1, **sizes)
        engine = RoundRows(target, drafter, small.policy, tree, graphs=graphs, fallback=True)
    one = {"max_length": LONGEST + TOKENS}
    references = [
        AutoregressiveDecoder(pair.model, **one),
        RadarDecoder(pair.model, draft=pair.draft, policy=FixedDepth(4), tree=tree, fallback=False, **one),
    ]
    found: Counter[str] = Counter()
    parted = []
    for number in range(args.mixes):
        rng = random.Random(number)
        requests = [request_of(rng, text, frozenset(small.eos_token_ids)) for _ in range(rng.randint(1, 12))]
        with torch.inference_mode():
            made = mix(engine, rng, requests)
        for place, (request, (tokens, whole)) in enumerate(zip(requests, made, strict=True)):
            expected = references[place % 2].run(request).token_ids
            same = tokens == (expected if whole else expected[: len(tokens)])
            found["whole" if whole else "cancelled"] += 1
            found["equal"] += same
            if not same:
                parted.append([number, place])
        report = {"command": command_line("bench.mixes", sys.argv[1:])} | describe_machine(device)
        report |= {"type": str(dtype), "mixes": number + 1, "texts": found["whole"] + found["cancelled"], **found}
        report["parted"] = parted
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report))
    return 0 if found["equal"] == report["texts"] else 1


if __name__ == "__main__":
    sys.exit(main())
