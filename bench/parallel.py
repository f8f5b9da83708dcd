"""One model on several GPUs: a token and a round at the shapes of Llama-3.1-70B, and whether its texts stay the same.

`torchrun --nproc-per-node 2 -m bench.parallel --out FILE`, random weights made on each rank as its part: no rank and no
host ever holds the whole. Of the embedded pair, texts are held against plain decoding on the same ranks, which they are
to equal, and on one card, whose sums are rounded elsewhere. `--tiny` runs on a CPU too, to try the script.
"""

import argparse
import json
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from bench.command import command_line
from bench.exact import texts
from bench.models import random_draft, random_target
from bench.round import spread, wall_per_round
from bench.shapes import LLAMA_70B, TINY, Geometry
from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.cli.decoders import default_prompts
from radar.engine.capture import capture, on_stream
from radar.target.parallel import localize
from radar.target.ranks import Ranks, join_ranks, own_device
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts

READ = 4.3e12  # bytes a second that a product reads on an H200


def random_part(geometry: Geometry, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> Any:
    """A rank's part of a random model; what all ranks hold is the same on all of them."""
    model: Any = random_target(geometry, torch.device("meta"), dtype)
    common, own = (torch.Generator(device).manual_seed(seed) for seed in (0, 1 + ranks.rank))

    def part(parameter: nn.Parameter, dim: int | None) -> Tensor:
        shape = [size // ranks.size if at == dim else size for at, size in enumerate(parameter.shape)]
        made = torch.empty(shape, dtype=dtype, device=device)
        return made.normal_(0, 0.02, generator=common if dim is None else own)

    localize(model, ranks, part)
    for module in model.modules():
        if type(module) is nn.Embedding and module.weight.is_meta:  # which not every plan names
            module.weight = nn.Parameter(part(module.weight, None), requires_grad=False)
        if type(module).__name__.endswith("RMSNorm"):
            module.weight = nn.Parameter(torch.ones_like(module.weight, device=device), requires_grad=False)
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config).to(device)
    return model


def exchanges(geometry: Geometry, device: torch.device, dtype: torch.dtype, ranks: Ranks) -> dict[str, float]:
    """Milliseconds that a pass's exchanges take alone, of a token and of a round's nodes, as a graph."""
    found: dict[str, float] = {}
    for rows in (1, 60) if device.type == "cuda" else ():
        x = torch.zeros((1, rows, geometry.hidden_size), dtype=dtype, device=device)
        scores = x.new_zeros((1, rows, geometry.vocabulary // ranks.size))

        def work(x: Tensor = x, scores: Tensor = scores) -> None:
            for _ in range(2 * geometry.layers):
                ranks.gather(x)
            ranks.gather(scores).movedim(0, -2).flatten(-2)

        on_stream(stream := torch.cuda.Stream(), work)
        graph = capture(work, stream)
        for _ in range(2):  # the first time uploads the graph
            started = time.perf_counter()
            for _ in range(10):
                graph.replay()
            torch.cuda.synchronize()
            found[f"rows_{rows}"] = 100 * (time.perf_counter() - started)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tiny", action="store_true", help="a tiny model and short texts")
    parser.add_argument("--only", choices=("shapes", "texts"))
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    geometry, dtype = (replace(TINY, layers=6), torch.float32) if args.tiny else (LLAMA_70B, torch.bfloat16)
    prefix, tokens, prompts, repeats = (40, 12, 2, 1) if args.tiny else (1024, 64, 16, 5)
    device = torch.device(own_device() or "cpu")
    ranks, pairs, length = join_ranks(device), {}, {"max_length": 4096}
    with torch.inference_mode():
        exchanged = exchanges(geometry, device, dtype, ranks)
    for name in () if args.only == "shapes" else ("float32",) if args.tiny else ("float32", "bfloat16"):
        pair: Any = length | {"dtype": getattr(torch, name), "fallback": False, "device": device}
        one = RadarDecoder.from_pretrained(**pair, tp_plan="auto")
        decoder = RadarDecoder.from_pretrained(**pair, tp_plan="auto", max_batch_size=4)
        pairs[name] = pair, AutoregressiveDecoder(one.model, tokenizer=one.tokenizer, **length), one, decoder
    if args.only != "texts":
        torch.manual_seed(0)
        model, draft = random_part(geometry, device, dtype, ranks), random_draft(geometry, device, dtype)
        plain = AutoregressiveDecoder(model, **length)
        decoder = RadarDecoder(model, draft=draft, policy=FixedDepth(8), tree=TreeConfig(), fallback=False, **length)
    if ranks.rank:
        decoder.follow()
        return 0
    report: dict[str, Any] = {"command": command_line("bench.parallel", sys.argv[1:]), "ranks": ranks.size}
    report |= {"machine": describe_machine(device), "shapes": geometry.name, "prefix": prefix, "texts": {}}
    if args.only != "texts":
        weights = sum(p.nbytes for p in model.parameters()) - model.model.embed_tokens.weight.nbytes
        report |= {
            "gigabytes_a_rank": weights / 1e9,
            "bytes_a_second": READ,
            "floor_ms": 1000 * weights / READ,
            "exchange_ms": exchanged,
        }
        prompt = torch.randint(0, geometry.vocabulary, (prefix,)).tolist()
        policies = {"round_fixed8": FixedDepth(8), "round_threshold": Threshold()}  # one object, one graph
        series: dict[str, list[float]] = {"token": [], **{name: [] for name in policies}}
        for _ in range(repeats):
            series["token"].append(wall_per_round(plain, prompt))
            for name, policy in policies.items():
                decoder.policy = policy
                series[name].append(wall_per_round(decoder, prompt))
        report["milliseconds"] = {name: spread(values) for name, values in series.items()}
        print(json.dumps(report), flush=True)
    for name, (pair, split, one, rows) in pairs.items():
        whole = RadarDecoder.from_pretrained(**pair)
        card = AutoregressiveDecoder(whole.model, tokenizer=whole.tokenizer, **length)
        ids = [encode_prompt(line, one.tokenizer) for line in load_prompts(default_prompts(), limit=prompts)]
        ranked = {"rounds": (one, one.policy), "rows": (rows, rows.policy)}
        single = {"rounds of one card": (whole, whole.policy), "ranks": (one, one.policy)}
        found = {
            "to the same ranks": texts(split, ranked, ids, tokens),
            "to one card": texts(card, single, ids, tokens),
        }
        several = (d.generate(ids, max_new_tokens=tokens, temperature=1.0, seed=7) for d in (rows, split))
        same = [a.token_ids == b.token_ids for a, b in zip(*several, strict=True)]
        report["texts"][name] = found | {"rows together": sum(same) / len(same)}
    if args.out:
        args.out.write_text(json.dumps(report, indent=1) + "\n")
    print(json.dumps(report["texts"], indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main())
