"""Let the trained target write: continuations of training prompts, as a token stream to train the draft head on.

`python -m bench.lab.on_policy --target OUT/target --data .lab/data --out .lab/run/on_policy.npy --seconds 40`. A head
that learns on the target's own text drafts longer. About half of the rows are greedy, the rest are sampled at
temperatures from 0.7 to 1.0.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers import LlamaForCausalLM

from bench.lab.train_target import log

BOS, USER, ASSISTANT, END = range(4)  # the tokenizer's special tokens come first
Prompts = list[np.ndarray]


class Writer:
    """Batched generation with Llama weights over static buffers; prompts are padded on the left."""

    def __init__(self, model: LlamaForCausalLM, rows: int, length: int) -> None:
        config, weight = model.config, model.model.embed_tokens.weight
        self.model, self.length = model, length
        self.kv, self.size = config.num_key_value_heads, config.head_dim
        shape = (len(model.model.layers), rows, self.kv, length, self.size)
        self.keys = torch.zeros(shape, device=weight.device, dtype=weight.dtype)
        self.values = torch.zeros_like(self.keys)
        self.columns = torch.arange(length, device=weight.device)

    def forward(self, ids: Tensor, start: int, pad: Tensor) -> Tensor:
        """ids [B, N] at columns start.., `pad` [B] empty columns on the left -> logits of the last column [B, V]."""
        batch, count = ids.shape
        end = start + count
        hidden = self.model.model.embed_tokens(ids)
        place = self.columns[start:end]
        rotary = self.model.model.rotary_emb(hidden, (place[None] - pad[:, None]).clamp(min=0))
        cos, sin = (part[:, None] for part in rotary)
        seen = (self.columns[:end] <= place[:, None]) & (self.columns[:end] >= pad[:, None, None])  # [B, N, end]
        seen |= self.columns[:end] == place[:, None]  # a padded row attends to itself: no empty softmax
        for index, layer in enumerate(self.model.model.layers):
            block, x = layer.self_attn, layer.input_layernorm(hidden)
            query, key, value = (
                projection(x).view(batch, count, -1, self.size).transpose(1, 2)
                for projection in (block.q_proj, block.k_proj, block.v_proj)
            )
            self.keys[index, :batch, :, start:end] = _rotate(key, cos, sin)
            self.values[index, :batch, :, start:end] = value
            query = _rotate(query, cos, sin).reshape(batch, self.kv, -1, self.size)  # [B, KV, G * N, D]
            scores = query @ self.keys[index, :batch, :, :end].transpose(-1, -2) * self.size**-0.5
            scores = scores.view(batch, self.kv, -1, count, end).masked_fill(~seen[:, None, None], float("-inf"))
            weights = scores.float().softmax(-1).to(value.dtype).view(batch, self.kv, -1, end)
            out = (weights @ self.values[index, :batch, :, :end]).view(batch, -1, count, self.size)
            hidden = hidden + block.o_proj(out.transpose(1, 2).reshape(batch, count, -1))
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        return self.model.lm_head(self.model.model.norm(hidden[:, -1])).float()

    @torch.inference_mode()
    def write(self, prompts: Prompts, temperatures: Tensor, new_tokens: int, deadline: float) -> list[np.ndarray]:
        """Each prompt with its continuation, up to and with the end token; 0 is the greedy temperature."""
        width, device = max(map(len, prompts)), self.keys.device
        lengths = torch.tensor([len(prompt) for prompt in prompts])
        padded = np.full((len(prompts), width), END, dtype=np.int64)
        for row, prompt in enumerate(prompts):
            padded[row, width - len(prompt) :] = prompt
        ids, pad = torch.from_numpy(padded).to(device), (width - lengths).to(device)
        greedy, scale = temperatures == 0, temperatures.clamp(min=1e-3)[:, None]
        done = torch.zeros(len(prompts), dtype=torch.bool, device=device)
        written, step, start = [ids], ids, 0
        for count in range(min(new_tokens, self.length - width)):
            logits = self.forward(step, start, pad)
            noise = torch.empty_like(logits).exponential_().clamp_(min=1e-20)
            sampled = (logits / scale - noise.log()).argmax(-1)  # Gumbel-max
            token = torch.where(done, END, torch.where(greedy, logits.argmax(-1), sampled))
            done |= token == END
            start, step = start + step.shape[1], token[:, None]
            written.append(step)
            if count % 16 == 15 and (bool(done.all()) or time.monotonic() > deadline):
                break
        rows, out = torch.cat(written, dim=1).cpu().numpy(), []
        for row, skipped, prompt in zip(rows, pad.tolist(), prompts, strict=True):
            ends = np.flatnonzero(row[width:] == END)
            out.append(row[skipped : width + int(ends[0]) + 1] if len(ends) else row[skipped:])
            assert len(out[-1]) >= len(prompt)
        return out


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-second, first), dim=-1) * sin


def prompts_of(stream: np.ndarray, rng: np.random.Generator, width: int) -> Prompts:
    """A prompt of every document: a chat up to the assistant's turn, or a part of a plain document."""
    starts = np.flatnonzero(stream == BOS)
    out = []
    for start, stop in zip(starts, [*starts[1:].tolist(), len(stream)], strict=True):
        document = stream[start:stop]
        turn = np.flatnonzero(document == ASSISTANT)
        cut = int(turn[0]) + 2 if len(turn) else int(rng.integers(2, max(3, min(width, len(document) * 2 // 3))))
        if 2 <= cut <= width:  # + 2: the line break after the turn belongs to the prompt
            out.append(document[:cut])
    return out


def prefixes_of(stream: np.ndarray, rng: np.random.Generator, count: int, width: int) -> Prompts:
    """`count` windows of 8 to `width` tokens, each behind a start token."""
    out = []
    for start in rng.integers(0, len(stream) - width, size=count):
        window = stream[start : start + rng.integers(8, width)]
        window = window[window >= 4]  # no start or end in the middle
        out.append(np.concatenate([[BOS], window]).astype(stream.dtype))
    return out


def batches(args: argparse.Namespace, rng: np.random.Generator) -> Iterator[tuple[Prompts, bool]]:
    """(prompts, first pass) without end, rows of similar lengths together; later passes only sample."""
    instruct, python = np.load(args.data / "instruct.npy"), np.load(args.data / "python.npy")
    first = True
    while True:
        prompts = prompts_of(instruct, rng, args.prompt)
        code = int(len(prompts) * args.python_share / (1 - args.python_share))
        prompts += prefixes_of(python, rng, code, min(args.prompt, 96))
        prompts.sort(key=len)
        groups = [prompts[i : i + args.batch] for i in range(0, len(prompts), args.batch)]
        for index in rng.permutation(len(groups)):
            yield groups[index], first
        first = False


def main(argv: list[str]) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--data", type=Path, default=Path(".lab/data"))
    parser.add_argument("--out", type=Path, required=True, help="the stream, .npy")
    parser.add_argument("--seconds", type=float, default=40.0)
    parser.add_argument("--python-share", type=float, default=0.25)
    parser.add_argument("--greedy-share", type=float, default=0.6, help="of the first pass over the prompts")
    for name, value in (("batch", 2048), ("prompt", 192), ("new-tokens", 224), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    args = parser.parse_args(argv)
    torch.manual_seed(args.seed)
    rng = np.random.default_rng(args.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = LlamaForCausalLM.from_pretrained(
        args.target, dtype=torch.bfloat16 if device.type == "cuda" else torch.float32
    )
    writer = Writer(model.to(device).eval(), args.batch, args.prompt + args.new_tokens)

    documents: list[np.ndarray] = []
    begun = time.monotonic()
    for prompts, first in batches(args, rng):
        temperatures = torch.empty(len(prompts), device=device).uniform_(0.7, 1.0)
        if first:
            temperatures[torch.rand(len(prompts), device=device) < args.greedy_share] = 0.0
        documents += writer.write(prompts, temperatures, args.new_tokens, begun + args.seconds)
        spent = time.monotonic() - begun
        log(f"{len(documents)} documents, {sum(map(len, documents)) / 1e6:.2f}M tokens, {spent:.1f} s")
        if spent >= args.seconds:
            break
    order = rng.permutation(len(documents))
    args.out.parent.mkdir(parents=True, exist_ok=True)
    np.save(args.out, np.concatenate([documents[i] for i in order]).astype(np.uint16))
    ended = sum(document[-1] == END for document in documents) / len(documents)
    log(f"on-policy text done: {len(documents)} documents, {ended:.0%} with an end")


if __name__ == "__main__":
    main(sys.argv[1:])
