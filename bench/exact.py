"""Are texts and logits the same whatever runs beside a row? On a GPU, in every type.

`python -m bench.exact --out FILE` holds plain decoding, EAGLE-3, a threshold and RADAR against one another: the
embedded pair in float32 (and on the CPU) and float16, and, widened to the shapes of a large model, in bfloat16; and the
logits of one row beside others and in trees, bit for bit. The file is one flat object.
"""

import argparse
import json
import sys
import time
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.widen import widen
from bench.shapes import GEOMETRIES, TINY
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.target.model import TargetModel
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts
from radar_kernels.reference_tree import pack_bits

DEPTH = 5  # of the row that is compared, with the rows above it
PREFIXES, BESIDE, TREES = (1, 63, 64, 65, 1000, 8191), (0, 15, 59, 127), 10


def texts(plain: Any, decoder: Any, policies: dict[str, Any], prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Share of texts equal to plain decoding's, at temperature 0 and 1, and where the others part."""
    equal, parted, asked = dict.fromkeys(policies, 0), [], 0
    for number, prompt in enumerate(prompts):
        for temperature in (0.0, 1.0):
            options = {"max_new_tokens": tokens, "temperature": temperature, "do_sample": temperature > 0}
            options |= {"seed": number, "reuse_prefix": False}
            expected = plain.generate(prompt, **options).token_ids
            asked += 1
            for name, policy in policies.items():
                decoder.policy = policy
                found = decoder.generate(prompt, **options).token_ids
                equal[name] += found == expected
                if found != expected:
                    pairs = zip(found, expected, strict=False)
                    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
                    parted.append([number, temperature, name, place])
    return {"equal": sum(equal.values()) / (asked * len(policies)), "by decoder": equal, "of": asked, "parted": parted}


@torch.inference_mode()
def logits(model: Any) -> dict[str, bool]:
    """By prefix: whether a row's logits have one bit pattern alone, beside others, as a chain and in random trees."""
    most = max(BESIDE) + 1
    prefixes = [prefix for prefix in PREFIXES if prefix + 16 <= model.config.max_position_embeddings]
    target = TargetModel(model, max_length=max(prefixes) + 16, max_rows=256)
    device = target.device
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(target.vocab_size, (max(prefixes) + DEPTH,), generator=generator).to(device)
    found = {}
    for prefix in prefixes:
        target.cache.reset()
        for first in range(0, prefix, 64):
            rows = text[None, first : min(first + 64, prefix)]
            target.verify_chain(rows)
            target.advance(rows.shape[1])
        path, chain = text[prefix - 1 : prefix - 1 + DEPTH], []
        for token in path:  # one by one, committed
            chain.append(target.verify(*target.chain(token[None, None]))[0][0, 0])
            target.advance(1)
        target.cache.length.fill_(prefix)
        same = True
        for seed in range(len(BESIDE) + TREES):
            nodes = (
                BESIDE[seed] + DEPTH if seed < len(BESIDE) else int(torch.randint(DEPTH, most, (), generator=generator))
            )
            place = [*torch.randperm(nodes - 1, generator=generator)[: DEPTH - 1].sort().values.tolist(), nodes - 1]
            dense = torch.eye(nodes, dtype=torch.bool)
            for child in range(1, nodes):
                dense[child] |= dense[int(torch.randint(child, (), generator=generator))]
            for i, node in enumerate(place):
                dense[node] = False
                dense[node, place[: i + 1]] = True
            ids = torch.randint(target.vocab_size, (1, nodes), generator=generator).to(device)
            ids[0, place] = path
            depths = (dense.sum(1) - 1)[None].to(device)
            out = target.verify(ids, depths, pack_bits(dense)[None].to(device))[0][0]
            same &= all(torch.equal(out[node], row) for node, row in zip(place, chain, strict=True))
        found[str(prefix)] = same
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    shapes = {g.name: g for g in (*GEOMETRIES, TINY)}
    parser.add_argument("--shapes", choices=sorted(shapes), default="Llama-3.1-8B")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[Path(str(files("radar"))) / "assets/prompts.jsonl"])
    parser.add_argument("--each", type=int, default=8, help="prompts of a file")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    report: dict[str, Any] = {"command": command_line("bench.exact", sys.argv[1:])} | describe_machine(device)
    report |= {"shapes": args.shapes, "prompts": 0, "tokens": args.tokens}

    options = {"tree": TreeConfig(), "max_length": 1024, "fallback": False}

    def pair(dtype: torch.dtype, place: torch.device) -> Any:
        return RadarDecoder.from_pretrained(
            device=place, dtype=dtype, tree=TreeConfig(), max_length=1024, fallback=False
        )

    def run(name: str, decoder: Any) -> None:
        begun = time.perf_counter()
        plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=decoder.max_length)
        policies = {"EAGLE-3": FixedDepth(8), "threshold": Threshold(0.2), "RADAR": decoder.policy}
        found = texts(plain, decoder, policies, prompts, args.tokens)
        report.update(
            {f"{key}_{name}": value for key, value in found.items()} | {f"logits_{name}": logits(decoder.model)}
        )
        report[f"seconds_{name}"] = round(time.perf_counter() - begun, 1)
        print(name, json.dumps(found), report[f"seconds_{name}"], flush=True)
        args.out.write_text(json.dumps(report, indent=1) + "\n")

    small = pair(torch.float32, device)
    prompts = [encode_prompt(x, small.tokenizer) for file in args.prompts for x in load_prompts(file, limit=args.each)]
    report["prompts"] = len(prompts)
    run("float32", small)
    run("float16", pair(torch.float16, device))
    if device.type == "cpu":  # a large model is no matter for it
        return 0
    wide = widen(small.model, small.draft, shapes[args.shapes], device=device, dtype=torch.bfloat16)
    parts = {"draft": wide.draft, "policy": small.policy, "tokenizer": small.tokenizer}
    run("bfloat16", RadarDecoder(wide.model, **parts, **options))
    return 0


if __name__ == "__main__":
    sys.exit(main())
