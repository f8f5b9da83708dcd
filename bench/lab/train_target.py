"""Train a small Llama within a wall-clock budget: that of the embedded default pair, or one to be widened.

`python -m bench.lab.train_target --data .lab/data --out OUT/target --seconds 250`; `--smoke` fits a CPU. What it came
to is in OUT/target.json.
"""

from __future__ import annotations

import argparse
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

SAMPLES = (
    "Natalia sold clips to 48 of her friends",
    "def fibonacci(n):",
    "Write a function to find the largest number in a list.",
)
START = time.monotonic()


def log(*values: object) -> None:
    print(f"[{time.monotonic() - START:6.1f}]", *values, flush=True)


def build(args: argparse.Namespace, tokenizer: object) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),  # type: ignore[arg-type]
        hidden_size=args.hidden,
        intermediate_size=args.intermediate,
        num_hidden_layers=args.layers,
        num_attention_heads=args.heads,
        num_key_value_heads=args.kv_heads,
        head_dim=args.head_dim or args.hidden // args.heads,
        max_position_embeddings=4096,
        rms_norm_eps=1e-5,
        rope_theta=10000.0,
        tie_word_embeddings=True,
        bos_token_id=tokenizer.bos_token_id,  # type: ignore[attr-defined]
        eos_token_id=tokenizer.eos_token_id,  # type: ignore[attr-defined]
        pad_token_id=None,
    )
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * args.layers))
    return model


def token_losses(model: LlamaForCausalLM, ids: Tensor, dtype: torch.dtype) -> Tensor:
    """Mean next-token loss of ids [B, T + 1]. Layers are called one by one: no mask is built, SDPA is causal."""
    inputs, labels = ids[:, :-1], ids[:, 1:]
    hidden = model.model.embed_tokens(inputs).to(dtype)
    positions = torch.arange(inputs.shape[1], device=ids.device)[None]
    rotary = model.model.rotary_emb(hidden, positions)
    for layer in model.model.layers:
        out = layer(hidden, attention_mask=None, position_ids=positions, position_embeddings=rotary, use_cache=False)
        hidden = out[0] if isinstance(out, tuple) else out
    logits = model.lm_head(model.model.norm(hidden))
    return F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten())


class Stream:
    """Tokens kept on the device; `draw` cuts random windows there, so that the host never waits for a copy."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.tokens = torch.from_numpy(np.load(path).astype(np.int32)).to(device)

    def draw(self, rows: int, length: int) -> Tensor:
        starts = torch.randint(0, len(self.tokens) - length, (rows, 1), device=self.tokens.device)
        return self.tokens[starts + torch.arange(length, device=self.tokens.device)].long()


@torch.no_grad()
def validate(loss: Callable[[Tensor], Tensor], streams: dict[str, Stream], rows: int, length: int) -> dict[str, float]:
    out = {}
    for name, stream in streams.items():
        width = min(length, len(stream.tokens) - 1)
        count = min(rows, (len(stream.tokens) - 1) // width)
        windows = torch.stack([stream.tokens[i * width : i * width + width + 1] for i in range(count)]).long()
        values = [loss(chunk) for chunk in windows.split(16)]
        out[name] = round(float(torch.stack(values).mean()), 3)
    return out


def train(model: LlamaForCausalLM, args: argparse.Namespace, device: torch.device) -> dict[str, object]:
    """Returns steps, tokens and the losses on held-out text."""
    cuda = device.type == "cuda"
    dtype = torch.bfloat16 if cuda else torch.float32
    train_streams = [Stream(args.data / f"{name}.npy", device) for name in ("instruct", "python")]
    held = {name: Stream(args.data / f"{name}_val.npy", device) for name in ("instruct", "python")}

    def plain_loss(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            return token_losses(model, ids, dtype)

    step_loss: Callable[[Tensor], Tensor] = torch.compile(plain_loss) if cuda and args.compile else plain_loss
    matrices = [p for p in model.parameters() if p.dim() > 1]
    groups = [
        {"params": matrices, "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=args.lr, betas=(0.9, 0.95), fused=cuda)
    step, started, next_log = 0, 0.0, args.log_every
    while True:
        spent = time.monotonic() - started if step else 0.0
        done = spent / args.seconds
        if done >= 1:
            break
        share = args.instruct_share[0] + (args.instruct_share[1] - args.instruct_share[0]) * done
        rows = round(args.batch * share)
        ids = torch.cat(
            [s.draw(n, args.length + 1) for s, n in zip(train_streams, (rows, args.batch - rows), strict=True)]
        )
        for group in optimizer.param_groups:
            group["lr"] = args.lr * min(1.0, (step + 1) / args.warmup) * max(0.01, 1 - done)
        loss = step_loss(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == 1:
            first = loss.item()
            started = time.monotonic()
            log(f"first step done, loss {first:.3f}; the budget of {args.seconds:g} s starts")
        elif step % 8 == 0:
            value = loss.item()  # also keeps the host from running ahead of the clock
            if not math.isfinite(value):
                raise RuntimeError(f"loss is {value} at step {step}: lower --lr (now {args.lr:g})")
            if spent >= next_log:
                next_log += args.log_every
                val = validate(plain_loss, held, args.batch, args.length)
                tokens = step * args.batch * args.length / 1e6
                log(f"step {step} ({step / spent:.1f}/s, {tokens:.0f}M tokens) train {value:.3f} val {val}")
    val = validate(plain_loss, held, 4 * args.batch, args.length)
    log(f"target done: {step} steps, {step * args.batch * args.length / 1e6:.0f}M tokens, val {val}")
    return {"steps": step, "tokens": step * args.batch * args.length, "held_out_loss": val}


def save(model: LlamaForCausalLM, args: argparse.Namespace) -> None:
    """bf16 safetensors, config, generation config and the tokenizer's two files: what `from_pretrained` reads."""
    args.out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    model.generation_config = GenerationConfig(
        bos_token_id=model.config.bos_token_id,
        eos_token_id=model.config.eos_token_id,
        pad_token_id=model.config.eos_token_id,
    )
    model.save_pretrained(args.out)
    for name in () if args.no_tokenizer else ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(args.data / "tokenizer" / name, args.out / name)
    log("saved", {path.name: path.stat().st_size for path in sorted(args.out.iterdir())})


@torch.no_grad()
def show_samples(model: LlamaForCausalLM, tokenizer: object, device: torch.device, new_tokens: int) -> None:
    """Greedy continuations of two bare prompts and a chat prompt, by recomputation: slow, and free of caches."""
    for prompt in SAMPLES:
        text = f"<|bos|><|user|>\n{prompt}\n<|assistant|>\n" if prompt.startswith("Write") else f"<|bos|>{prompt}"
        ids = tokenizer(text, add_special_tokens=False, return_tensors="pt").input_ids.to(device)  # type: ignore[operator]
        for _ in range(new_tokens):
            logits = model(input_ids=ids, use_cache=False).logits[:, -1]
            ids = torch.cat([ids, logits.argmax(-1, keepdim=True)], dim=1)
            if int(ids[0, -1]) == model.config.eos_token_id:
                break
        log("sample:", repr(tokenizer.decode(ids[0].tolist())))  # type: ignore[attr-defined]


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, default=Path(".lab/data"))
    parser.add_argument("--out", type=Path, required=True)
    for name, value in (("seconds", 250.0), ("lr", 2e-3), ("log-every", 30.0)):
        parser.add_argument(f"--{name}", type=float, default=value)
    sizes = {"batch": 128, "length": 1024, "hidden": 256, "intermediate": 640, "layers": 7, "heads": 4, "kv-heads": 2}
    for name, size in {**sizes, "head-dim": 0, "warmup": 150, "seed": 0}.items():
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument(
        "--instruct-share", type=float, nargs=2, default=(0.25, 0.35), help="at the start and at the end"
    )
    parser.add_argument("--no-compile", dest="compile", action="store_false")
    parser.add_argument("--no-tokenizer", action="store_true", help="leave the tokenizer's files out of --out")
    parser.add_argument("--smoke", action="store_true", help="a model that trains on a CPU in seconds")
    args = parser.parse_args(argv)
    if args.smoke:
        args.batch, args.length, args.hidden, args.intermediate, args.layers = 4, 128, 64, 128, 4
        args.heads, args.kv_heads, args.seconds, args.log_every, args.warmup = 4, 2, min(args.seconds, 20.0), 5.0, 20
    return args


def main(argv: list[str]) -> None:
    args = parse(argv)
    torch.manual_seed(args.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(args.data / "tokenizer")
    model = build(args, tokenizer).to(device)
    size = sum(p.numel() for p in model.parameters())
    log(f"{size / 1e6:.2f}M parameters on {device}")
    record = {"parameters": size, **train(model, args, device)}
    save(model, args)
    args.out.with_suffix(".json").write_text(json.dumps(record) + "\n")
    show_samples(model, tokenizer, device, 8 if args.smoke else 120)


if __name__ == "__main__":
    main(sys.argv[1:])
