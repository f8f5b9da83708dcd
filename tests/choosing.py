"""A policy that chooses how many nodes are verified, and what its rounds were."""

import torch

from radar import FixedDepth, SamplingParams

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
NODES = (2, 9, 24, 60)
SAMPLED = SamplingParams(temperature=0.9, seed=4, top_k=7, repetition_penalty=1.2)


class Turns(FixedDepth):
    """Another number in every round; nothing of it is on the host."""

    def __init__(self, calls=4, nodes=NODES):
        super().__init__(calls)
        self.nodes = nodes

    def bind(self, batch_size, tree, device):
        super().bind(batch_size, tree, device)
        self._turn = torch.zeros(batch_size, dtype=torch.int64, device=device)

    def reset(self):
        super().reset()
        self._turn += 1

    def choose(self, mass):
        return self._turn % len(self.nodes)


def rounds_of(decoder, **options):
    """Of the prompt's text: its tokens, and its rounds as (calls, draft tokens that were verified)."""
    made = list(decoder.rounds(PROMPT, **options))
    drafted = [(one.num_draft_calls, one.num_draft_tokens) for one in made if not (one.is_prefill or one.is_fallback)]
    return [token for one in made for token in one.tokens], drafted
