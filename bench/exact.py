"""Are texts and logits the same whatever runs beside a row? Bit for bit, on a GPU.

`python -m bench.exact --type bfloat16 --out FILE` holds plain decoding, EAGLE-3, a threshold and RADAR against one
another, and the logits of one row beside others and in trees: of the embedded pair in float32 and float16, and, in
bfloat16, of the pair widened to the shapes of Llama-3.1-8B. The file is one flat object.
"""

import argparse
import json
import sys
from importlib.resources import files
from pathlib import Path
from typing import Any

import torch

from bench.command import command_line
from bench.lab.widen import widen
from bench.shapes import LLAMA_8B
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.target.model import TargetModel
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts
from radar_kernels.reference_tree import pack_bits

DEPTH = 5  # of the row that is compared, with the rows above it
PREFIXES, BESIDE, TREES = (1, 63, 64, 65, 1000, 8191), (0, 15, 59, 127), 10


def texts(plain: Any, decoders: dict[str, tuple[Any, Any]], prompts: list[list[int]], tokens: int) -> dict[str, Any]:
    """Share of texts equal to plain decoding's, at temperature 0 and 1, and where the others part; `decoders` are each
    with the policy that it takes for it."""
    equal, rounds, parted, asked = dict.fromkeys(decoders, 0), dict.fromkeys(decoders, (0, 0)), [], 0
    for number, prompt in enumerate(prompts):
        for temperature in (0.0, 1.0):
            options = {"max_new_tokens": tokens, "temperature": temperature, "do_sample": temperature > 0}
            options |= {"seed": number, "reuse_prefix": False}
            expected = plain.generate(prompt, **options).token_ids
            asked += 1
            for name, (decoder, policy) in decoders.items():
                decoder.policy = policy
                found = decoder.generate(prompt, **options).token_ids
                made = decoder.metrics
                rounds[name] = (rounds[name][0] + made.num_tokens, rounds[name][1] + made.num_spec_steps)
                equal[name] += found == expected
                if found != expected:
                    pairs = zip(found, expected, strict=False)
                    place = next((i for i, (a, b) in enumerate(pairs) if a != b), min(len(found), len(expected)))
                    parted.append([number, temperature, name, place])
    return {
        "equal_texts": sum(equal.values()) / (asked * len(decoders)),
        "tokens a round": {name: round(made / count, 3) for name, (made, count) in rounds.items()},
        "by decoder": equal,
        "of": asked,
        "parted": parted,
    }


@torch.inference_mode()
def logits(model: Any) -> dict[str, bool]:
    """By prefix: whether a row's logits have one bit pattern alone, beside others, as a chain and in random trees."""
    most = max(BESIDE) + 1
    model.config.max_position_embeddings = max(PREFIXES) + 16  # angles are computed, whatever the position
    target = TargetModel(model, max_length=max(PREFIXES) + 16, max_rows=256)
    device = target.device
    generator = torch.Generator().manual_seed(0)
    text = torch.randint(target.vocab_size, (max(PREFIXES) + DEPTH,), generator=generator).to(device)
    found = {}
    for prefix in PREFIXES:
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
    parser.add_argument("--type", choices=("float32", "float16", "bfloat16"), default="float32")
    parser.add_argument("--prompts", type=Path, nargs="+", default=[Path(str(files("radar"))) / "assets/prompts.jsonl"])
    parser.add_argument("--each", type=int, default=8, help="prompts of a file")
    parser.add_argument("--tokens", type=int, default=128)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    device, dtype = torch.device("cuda" if torch.cuda.is_available() else "cpu"), getattr(torch, args.type)
    options: dict[str, Any] = {"tree": TreeConfig(), "max_length": 1024, "fallback": False}
    decoder = RadarDecoder.from_pretrained(device=device, dtype=dtype, **options)
    radar = decoder.policy
    if dtype == torch.bfloat16:
        wide = widen(decoder.model, decoder.draft, LLAMA_8B, device=device, dtype=dtype)
        options |= {"draft": wide.draft, "policy": radar, "tokenizer": decoder.tokenizer}
        decoder = RadarDecoder(wide.model, **options)
    plain = AutoregressiveDecoder(decoder.model, tokenizer=decoder.tokenizer, max_length=1024)
    lines = [line for file in args.prompts for line in load_prompts(file, limit=args.each)]
    prompts = [encode_prompt(line, decoder.tokenizer) for line in lines]
    report: dict[str, Any] = {"command": command_line("bench.exact", sys.argv[1:])} | describe_machine(device)
    report |= {"type": args.type, "prompts": len(prompts), "tokens": args.tokens}
    report["logits_bitwise"] = logits(decoder.model)
    print(report["logits_bitwise"], flush=True)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    decoders = {"EAGLE-3": (decoder, FixedDepth(8)), "threshold": (decoder, Threshold(0.2)), "RADAR": (decoder, radar)}
    if decoder.engine.drafter.draft_dtype != dtype:  # of 8 bits
        same = options | {"draft": decoder.draft, "policy": radar, "draft_dtype": dtype}
        decoders["EAGLE-3, the head's own weights"] = (RadarDecoder(decoder.model, **same), FixedDepth(8))
    report |= texts(plain, decoders, prompts, args.tokens)
    args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps({key: report[key] for key in ("equal_texts", "tokens a round", "by decoder", "of", "parted")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
