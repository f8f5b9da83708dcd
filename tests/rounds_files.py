"""Small files of recorded rounds."""

import warnings
from pathlib import Path

import torch

from radar.config import TreeConfig
from radar.train.dataset import RecordedSignals, RoundDataset, RoundsHeader, read_rounds
from radar.train.round_writer import RoundWriter

TREE = TreeConfig(tree_top_k=3, max_calls=4, total_tokens=12)
HEADER = RoundsHeader(TREE, 0.0, {"target": "t"})
LENGTHS = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 1, 0], [1, 1, 1, 1]])
FULL = RoundsHeader(TREE, 1.0, {"target": "t"}, ("signals", "distribution"))


def prompt_rounds(prompt: int, rounds: int = 3) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(prompt)
    scores = -torch.rand(rounds, 4, 3, generator=generator).cumsum(-1)
    scores[0, 0, 2] = -torch.inf
    pick = torch.randint(4, (rounds,), generator=generator)
    return torch.arange(rounds) * 5 + prompt, scores, LENGTHS[pick]


def write(path: Path, prompts: range = range(4)) -> bytes:
    with RoundWriter(path, HEADER) as writer:
        for prompt in prompts:
            if prompt not in writer.done:
                writer.write_prompt(prompt, *prompt_rounds(prompt))
    return path.read_bytes()


def quiet(path: Path) -> RoundDataset:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return read_rounds(path)


def optional_parts(prompt: int, rounds: int = 3) -> tuple[RecordedSignals, torch.Tensor]:
    generator = torch.Generator().manual_seed(prompt + 50)
    table = torch.rand(rounds, 4, 5, generator=generator).tril(1)  # stop n accepts n tokens at most
    signals = RecordedSignals(
        torch.rand(rounds, 4, generator=generator),
        torch.tensor([-1, *range(rounds - 1)]),
        torch.rand(rounds, generator=generator),
        torch.arange(1, rounds + 1),
    )
    return signals, table / table.sum(-1, keepdim=True)


def write_full(path: Path, prompts: range = range(4)) -> bytes:
    with RoundWriter(path, FULL) as writer:
        for prompt in prompts:
            signals, distribution = optional_parts(prompt)
            writer.write_prompt(prompt, *prompt_rounds(prompt), signals=signals, distribution=distribution)
    return path.read_bytes()
