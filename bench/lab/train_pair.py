"""Train a small pair within a budget: target, its own text, head, and what the head gets accepted.

`python -m bench.lab.train_pair llama --out .lab/pairs/llama` takes about eight minutes on a GPU; `embedded --size
embedded --target-seconds 115 --text-seconds 35 --head-seconds 175` made the pair that ships. Writes OUT/target,
OUT/draft and OUT/pair.json. What an earlier call finished is kept: the same command goes on where the last one stopped.
`--data` is what `bench.lab.data` made (for pairs of size "lab" with `--vocab 16384 --python-tokens 99000000`, where
there is that much Python). `bench.released` and `bench.replayed` judge such a pair like a released one: `--model
OUT/target --draft OUT/draft`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoModelForCausalLM

from bench.lab.recipes import RECIPES, SIZES, Recipe, Size
from bench.lab.target import log, train_target
from bench.lab.text import write_text
from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.draft.config import DraftConfig
from radar.metrics import merge
from radar.tools.machine import describe_machine
from radar.tools.prompts import encode_prompt, load_prompts
from radar.train.draft import TrainingOptions, train_draft
from radar.train.tokens import TokenMixture

SHARES = {"on_policy": 0.7, "instruct": 0.2, "python": 0.1}  # of the head's text


def train_head(
    data: Path, target: Path, text: Path, out: Path, recipe: Recipe, size: Size, *, seconds: float
) -> dict[str, Any]:
    """An EAGLE-3 head by `radar.train.draft`, on the target's own text and on its corpus."""
    torch.set_float32_matmul_precision("high")
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(target, dtype=torch.bfloat16 if cuda else torch.float32)
    model = model.to("cuda" if cuda else "cpu").requires_grad_(False)
    files = {"on_policy": text, **{name: data / f"{name}.npy" for name in ("instruct", "python")}}
    mixture = TokenMixture([np.load(path) for path in files.values()], [SHARES[name] for name in files])
    shape = model.config
    config = DraftConfig(
        hidden_size=shape.hidden_size, intermediate_size=size.draft_intermediate,
        num_attention_heads=shape.num_attention_heads, num_key_value_heads=shape.num_key_value_heads,
        head_dim=shape.head_dim, vocab_size=shape.vocab_size, target_hidden_size=shape.hidden_size,
        draft_vocab_size=min(size.draft_vocabulary, shape.vocab_size),
    )  # fmt: skip
    options = TrainingOptions(
        seconds=seconds, batch_size=size.draft_batch, length=size.draft_length, lr=size.draft_learning_rate,
        max_grad_norm=1.0, seed=recipe.seed, checkpoint_every=30.0,
    )  # fmt: skip
    return dict(train_draft(model, mixture, out, config=config, options=options, tap_layers=size.taps))


def accepted(pair: Path, prompts: Path, *, limit: int, new_tokens: int) -> dict[str, Any]:
    """Greedy decoding of held-out prompts with eight draft calls a round."""
    decoder = RadarDecoder.from_pretrained(
        pair / "target", pair / "draft", FixedDepth(8), tree=TreeConfig(), max_length=1024,
        fallback=False,
    )  # fmt: skip
    texts = [encode_prompt(line, decoder.tokenizer) for line in load_prompts(prompts, limit=limit)]
    texts = [text for text in texts if len(text) + new_tokens <= decoder.max_length]
    metrics = merge([decoder.generate(text, max_new_tokens=new_tokens).metrics for text in texts])
    names = ("num_spec_steps", "mean_acceptance_length", "acceptance_histogram")
    return {"prompts": len(texts), **{name: getattr(metrics, name) for name in names}}


def main(argv: list[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("recipe", choices=sorted(RECIPES))
    parser.add_argument("--data", type=Path, default=Path(".lab/data"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", choices=sorted(SIZES), default="lab")
    parser.add_argument("--target-seconds", type=float, default=240.0)
    parser.add_argument("--text-seconds", type=float, default=40.0)
    parser.add_argument("--head-seconds", type=float, default=110.0)
    parser.add_argument("--limit", type=int, default=40, help="held-out prompts that the head is judged on")
    args = parser.parse_args(argv)
    recipe, size, data, out = RECIPES[args.recipe], SIZES[args.size], args.data, args.out
    out.mkdir(parents=True, exist_ok=True)
    target, text, draft = out / "target", out / "text.npy", out / "draft"

    def once(name: str, make: Callable[..., dict[str, Any]], *arguments: Any, seconds: float) -> Any:
        """What `make` returned, in this call or in an earlier one."""
        file = out / f"{name}.json"
        if not file.is_file():
            file.write_text(json.dumps(make(*arguments, recipe, size, seconds=seconds)) + "\n")
        return json.loads(file.read_text())

    made = {"target": once("target", train_target, data, target, seconds=args.target_seconds)}
    once("text", write_text, data, target, text, seconds=args.text_seconds)
    made["draft"] = once("draft", train_head, data, target, text, draft, seconds=args.head_seconds)
    found = accepted(out, data / "heldout_prompts.jsonl", limit=args.limit, new_tokens=min(128, size.write_tokens))
    machine = describe_machine(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
    record = {"recipe": args.recipe, "size": args.size, "machine": machine, **made, "held_out_fixed_8": found}
    (out / "pair.json").write_text(json.dumps(record, indent=1) + "\n")
    log(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
