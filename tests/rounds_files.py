"""Small recordings."""

from pathlib import Path

import torch

from radar.config import TreeConfig
from radar.replay.recording import Recording
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.twins import fingerprint

TREE = TreeConfig(tree_top_k=3, max_calls=4, total_tokens=12)
HEADER = RoundsHeader(TREE, 0.0, {"target": "t"})
FULL = RoundsHeader(TREE, 1.0, {"target": "t"})  # with the distribution of the accepted lengths
LENGTHS = torch.tensor([[1, 2, 3, 4], [0, 0, 0, 0], [1, 2, 1, 0], [1, 1, 1, 1]])
IDS = [[number, 7, 7] for number in range(40)]


def prompt_rounds(prompt: int, header: RoundsHeader = HEADER, rounds: int = 3) -> RoundDataset:
    generator = torch.Generator().manual_seed(prompt)
    scores = -torch.rand(rounds, 4, 3, generator=generator).cumsum(-1)
    scores[:1, 0, 2] = -torch.inf
    pick = torch.randint(4, (rounds,), generator=generator)
    table = torch.rand(rounds, 4, 5, generator=generator).tril(1)  # stop n accepts n tokens at most
    distribution = table / table.sum(-1, keepdim=True) if header.temperature > 0 else None
    number, position = torch.full((rounds,), prompt), torch.arange(rounds) * 5 + prompt
    known = {prompt: fingerprint(f"the prompt of number {prompt} and {prompt * 7}")}
    return RoundDataset(scores, LENGTHS[pick], number, position, header, distribution, known)


def write(folder: Path, prompts: range = range(4), header: RoundsHeader = HEADER) -> Recording:
    """Begin or go on with a recording of these prompts."""
    with Recording(folder, header, IDS) as recording:
        for prompt in prompts:
            if prompt not in recording.done:
                recording.add(prompt, prompt_rounds(prompt, header))
    return recording


def store(folder: Path, data: RoundDataset, prompts: range) -> Path:
    """Some prompts of a data set as a recording."""
    with Recording(folder, data.header, [[number] for number in range(max(prompts) + 1)]) as recording:
        for prompt in prompts:
            part = data.select(data.prompt == prompt)
            words = " ".join(f"w{prompt}x{n}" for n in range(9))  # alike to no other prompt's
            known = part.prompts or {prompt: fingerprint(words)}
            parts = RoundDataset.of(part.tensors(), part.header, known)
            recording.add(prompt, parts)
    return folder
