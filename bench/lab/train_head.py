"""Train the draft head of a small pair: `radar.train.draft` on the target's own text and on its corpus.

`python -m bench.lab.train_head --target OUT/target --data .lab/data --on-policy on_policy.npy --out OUT/draft`. What it
came to is in OUT/draft.json.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from bench.lab.train_target import log
from radar.draft.config import DraftConfig
from radar.train.draft import TrainingOptions, train_draft
from radar.train.tokens import TokenMixture

SHARES = {"on_policy": 0.7, "instruct": 0.2, "python": 0.1}


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".lab/data"))
    parser.add_argument("--on-policy", type=Path, help="left out of the mixture if the file is not there")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=190.0)
    parser.add_argument("--lr", type=float, default=2e-3)
    parser.add_argument("--checkpoint-every", type=float, default=0.0, help="seconds; an interrupted run goes on")
    parser.add_argument("--taps", type=lambda text: [int(part) for part in text.split(",")], help="for instance 2,4,6")
    for name, value in (("batch", 32), ("length", 512), ("draft-vocab", 2048), ("intermediate", 640), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--no-compile", action="store_true")
    args = parser.parse_args(argv)
    torch.set_float32_matmul_precision("high")
    cuda = torch.cuda.is_available()
    model = AutoModelForCausalLM.from_pretrained(args.target, dtype=torch.bfloat16 if cuda else torch.float32)
    model = model.to("cuda" if cuda else "cpu").requires_grad_(False)
    files = {name: args.data / f"{name}.npy" for name in ("instruct", "python")}
    if args.on_policy is not None and args.on_policy.is_file():
        files["on_policy"] = args.on_policy
    text = TokenMixture([np.load(path) for path in files.values()], [SHARES[name] for name in files])
    log("mixture", {name: round(float(w), 3) for name, w in zip(files, text.weights, strict=True)})
    target = model.config
    config = DraftConfig(
        hidden_size=target.hidden_size,
        intermediate_size=args.intermediate,
        num_attention_heads=target.num_attention_heads,
        num_key_value_heads=target.num_key_value_heads,
        head_dim=target.head_dim,
        vocab_size=target.vocab_size,
        draft_vocab_size=args.draft_vocab,
        target_hidden_size=target.hidden_size,
    )
    options = TrainingOptions(
        seconds=args.seconds,
        batch_size=args.batch,
        length=args.length,
        lr=args.lr,
        max_grad_norm=1.0,
        seed=args.seed,
        compile=False if args.no_compile else None,
        checkpoint_every=args.checkpoint_every,
        log_every=15.0,
        progress=False,
    )
    record = train_draft(model, text, args.out, config=config, options=options, tap_layers=args.taps)
    weights = load_file(args.out / "model.safetensors").values()
    record["parameters"] = sum(tensor.numel() for tensor in weights if tensor.is_floating_point())
    args.out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    log(json.dumps(record))


if __name__ == "__main__":
    main(sys.argv[1:])
