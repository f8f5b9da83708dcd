"""Train the target of a small pair, a Llama, within a wall-clock budget."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import AutoTokenizer, GenerationConfig, LlamaConfig, LlamaForCausalLM

from bench.lab.recipes import Recipe, Size

__all__ = ["build", "log", "train_target"]

START = time.monotonic()
WARMUP = 150  # steps
LOG_EVERY = 30.0  # seconds


def log(*values: object) -> None:
    print(f"[{time.monotonic() - START:6.1f}]", *values, flush=True)


def train_target(data: Path, out: Path, recipe: Recipe, size: Size, *, seconds: float) -> dict[str, Any]:
    """Train, and write what `from_pretrained` reads, in bfloat16, to `out`.

    Args:
        data: folder that `bench.lab.data` wrote.
        seconds: behind the first step, which compiles.

    Returns:
        Parameters, steps, tokens and the losses on held-out text.
    """
    torch.manual_seed(recipe.seed)
    torch.set_float32_matmul_precision("high")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    tokenizer = AutoTokenizer.from_pretrained(data / "tokenizer")
    model = build(recipe, size, tokenizer).to(device)
    parameters = sum(p.numel() for p in model.parameters())
    log(f"{parameters / 1e6:.2f}M parameters on {device}")
    record = {"parameters": parameters, **_train(model, data, recipe, size, seconds)}
    out.mkdir(parents=True, exist_ok=True)
    model.to(torch.bfloat16)
    ends = {"bos_token_id": tokenizer.bos_token_id, "eos_token_id": tokenizer.eos_token_id}
    model.generation_config = GenerationConfig(**ends, pad_token_id=tokenizer.eos_token_id)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(data / "tokenizer" / name, out / name)
    model.save_pretrained(out)
    return record


def build(recipe: Recipe, size: Size, tokenizer: Any) -> LlamaForCausalLM:
    """With tied embeddings and small outputs of every layer."""
    config = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=size.hidden, intermediate_size=size.intermediate,
        num_hidden_layers=size.layers, num_attention_heads=size.heads, num_key_value_heads=size.heads // recipe.group,
        head_dim=size.head_dim, max_position_embeddings=4096, rms_norm_eps=1e-5, rope_theta=10000.0,
        tie_word_embeddings=True, bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id,
        pad_token_id=None,
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    for name, weight in model.named_parameters():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            nn.init.normal_(weight, 0.0, 0.02 / math.sqrt(2 * size.layers))
    return model


class Stream:
    """Tokens kept on the device; `draw` cuts random windows there, so that the host never waits for a copy."""

    def __init__(self, path: Path, device: torch.device) -> None:
        self.tokens = torch.from_numpy(np.load(path).astype(np.int32)).to(device)

    def draw(self, rows: int, length: int) -> Tensor:
        starts = torch.randint(0, len(self.tokens) - length, (rows, 1), device=self.tokens.device)
        return self.tokens[starts + torch.arange(length, device=self.tokens.device)].long()


def _losses(model: LlamaForCausalLM, ids: Tensor, dtype: torch.dtype) -> Tensor:
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


@torch.no_grad()
def _validate(loss: Callable[[Tensor], Tensor], streams: dict[str, Stream], rows: int, length: int) -> dict[str, float]:
    out = {}
    for name, stream in streams.items():
        width = min(length, len(stream.tokens) - 1)
        count = min(rows, (len(stream.tokens) - 1) // width)
        windows = torch.stack([stream.tokens[i * width : i * width + width + 1] for i in range(count)]).long()
        out[name] = round(float(torch.stack([loss(chunk) for chunk in windows.split(16)]).mean()), 3)
    return out


def _train(model: LlamaForCausalLM, data: Path, recipe: Recipe, size: Size, seconds: float) -> dict[str, Any]:
    device = model.device
    cuda = device.type == "cuda"
    names = ("instruct", "python")
    streams = [Stream(data / f"{name}.npy", device) for name in names]
    held = {name: Stream(data / f"{name}_val.npy", device) for name in names}

    def plain_loss(ids: Tensor) -> Tensor:
        with torch.autocast(device.type, torch.bfloat16, enabled=cuda):
            return _losses(model, ids, torch.bfloat16 if cuda else torch.float32)

    step_loss: Callable[[Tensor], Tensor] = torch.compile(plain_loss) if cuda else plain_loss
    groups = [
        {"params": [p for p in model.parameters() if p.dim() > 1], "weight_decay": 0.1},
        {"params": [p for p in model.parameters() if p.dim() < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=size.learning_rate, betas=(0.9, 0.95), fused=cuda)
    first_share, last_share = recipe.instruct_share
    step, started, next_log = 0, 0.0, LOG_EVERY
    while True:
        spent = time.monotonic() - started if step else 0.0
        done = spent / seconds
        if done >= 1:
            break
        rows = round(size.batch * (first_share + (last_share - first_share) * done))
        drawn = zip(streams, (rows, size.batch - rows), strict=True)
        ids = torch.cat([stream.draw(count, size.length + 1) for stream, count in drawn])
        for group in optimizer.param_groups:
            group["lr"] = size.learning_rate * min(1.0, (step + 1) / WARMUP) * max(0.01, 1 - done)
        loss = step_loss(ids)
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        if step == 1:
            first = loss.item()
            started = time.monotonic()
            log(f"first step done, loss {first:.3f}; the budget of {seconds:g} s starts")
        elif step % 8 == 0:
            value = loss.item()  # also keeps the host from running ahead of the clock
            if not math.isfinite(value):
                raise RuntimeError(f"loss is {value} at step {step}: lower the learning rate ({size.learning_rate:g})")
            if spent >= next_log:
                next_log += LOG_EVERY
                log(f"step {step} ({step / spent:.1f}/s) train {value:.3f}")
    val = _validate(plain_loss, held, 4 * size.batch, size.length)
    log(f"target done: {step} steps, val {val}")
    return {"steps": step, "tokens": step * size.batch * size.length, "held_out_loss": val}
