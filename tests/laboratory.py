"""A tiny pair with its prompts, as the laboratory finds them, and the large shapes it is widened to."""

import json
from dataclasses import replace

import torch
from fakes import tiny_draft, tiny_target
from rounds_files import store

from bench.lab.sets import NODES, SOURCES, TASKS, TREE, files_of
from bench.lab.tokenizer import save_tokenizer, train_tokenizer
from bench.shapes import Geometry
from radar.draft.checkpoint import save_draft
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable
from radar.tools.machine import device_name

VOCAB, LIVE = 300, 17  # ids of the tokenizer; those that the tiny model ever says
SHAPES = {
    "llama": Geometry(
        name="wide", layers=6, hidden_size=48, intermediate_size=64, heads=4, kv_heads=2, head_dim=16, vocabulary=400,
        draft_vocabulary=390,
    )
}  # fmt: skip


def make_laboratory(folder):
    """`pair` that says few ids, `prompts` that measure, and `data` to learn from."""
    torch.manual_seed(0)
    model = tiny_target(vocab_size=VOCAB, max_position_embeddings=2048, eos_token_id=3)
    draft = tiny_draft(vocab_size=VOCAB, draft_vocab_size=VOCAB)
    for layer in (model.lm_head, draft.lm_head):
        layer.weight.data[:4] = layer.weight.data[LIVE:] = 0  # their logits are 0: among 13 others one is above
    model.save_pretrained(folder / "pair" / "target")
    save_draft(draft, folder / "pair" / "draft", dtype=torch.float32)
    words = [f"{a}{b} {a * 2}{b * 3}" for a in "abcdefgh" for b in "ijklmnop"]
    tokenizer = train_tokenizer(iter(words), VOCAB)
    assert tokenizer.get_vocab_size() == VOCAB
    save_tokenizer(tokenizer, folder / "pair" / "target")
    (folder / "prompts").mkdir()
    (folder / "data").mkdir()
    for task in TASKS:
        rows = [{"turns": [f"{task} question {n}"]} for n in range(3)]
        (folder / "prompts" / f"q_{task}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    sources = ("gsm8k", "mbpp", "codegen", "python")
    rows = [{"prompt": f"lesson {n} of many", "chat": n % 4 < 3, "source": sources[n % 4]} for n in range(48)]
    (folder / "data" / "heldout_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def command(folder, *more):
    """Arguments of `bench.end_to_end`, small."""
    return [
        "--pair", f"llama={folder / 'pair'}", "--data", str(folder / "data"), "--prompts", str(folder / "prompts"),
        "--work", str(folder / "work"), "--out", str(folder / "results" / "cells.json"), "--limit", "1",
        "--epochs", "1", "--temperatures", "0", "--workers", "1", "--new-tokens", "8", "--max-length", "100", *more,
    ]  # fmt: skip


def random_rounds(prompts, *, nodes=60, seed=0, each=5):
    """Five rounds a prompt; the lower a round's first score, the sooner its path dies."""
    generator = torch.Generator().manual_seed(seed)
    count, tree = each * prompts, replace(TREE, total_tokens=nodes)
    scores = -torch.rand(count, tree.max_calls, tree.tree_top_k, generator=generator).sort(2).values
    scores = (scores * torch.rand(count, 1, 1, generator=generator)).cumsum(1) - 0.2
    accept = (scores[..., 0] > -0.4).long().cumprod(1).cumsum(1)
    positions = torch.arange(count) % each + 5
    return RoundDataset(scores, accept, torch.arange(count) // each, positions, RoundsHeader(tree))


def write_rounds(file, data):
    store(file, data, range(int(data.prompt.max()) + 1))


def fill_work(folder, temperature=0.0):
    """What the stages `record` and `costs` would leave for the pair, made up."""
    rounds = folder / "work" / "llama" / "rounds"
    rounds.mkdir(parents=True)
    sets = {"train": 12, **{f"develop-{kind}": 3 for kind in SOURCES}, **dict.fromkeys(TASKS, 2)}
    for seed, (name, prompts) in enumerate(sets.items()):
        for nodes, file in files_of(rounds, name, temperature, "0-of-1").items():
            write_rounds(file, random_rounds(prompts, nodes=nodes, seed=seed))
    CostTable(
        draft_call_seconds=(0.3,) * TREE.max_calls, nodes=NODES, contexts=(0,),
        verify_seconds=tuple((1.0 + nodes / 1000,) for nodes in NODES), decision_seconds=0.001, rest_seconds=0.1,
        device=device_name(torch.device("cuda" if torch.cuda.is_available() else "cpu")), pair="llama",
    ).save(rounds.parent / "costs.json")  # fmt: skip
    return folder
