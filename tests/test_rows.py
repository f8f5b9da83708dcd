"""The batch is the leading dimension, and works: rows of different lengths, each stopped by its own policy."""

import pytest
import torch
from fakes import DEVICE, give_pages, hf_greedy, tiny_draft, tiny_target

from radar import FixedDepth, SamplingParams, Threshold, TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.target.model import TargetModel

PROMPTS = [[5, 3, 2], [(7 * i + i * i) % 17 for i in range(90)], [2, 7, 1, 8, 2, 8, 1, 8, 2, 8, 4, 5, 9, 0, 4, 5, 2]]
TREE = TreeConfig(total_tokens=20, tree_top_k=4, max_calls=6)
LENGTH = 40


class Rows:
    """Texts of several prompts, side by side, as a scheduler would drive the steps."""

    def __init__(self, prompts, policy, sampling):
        batch = len(prompts)
        sizes = {"max_length": 200, "max_rows": 256, "batch_size": batch}
        target = TargetModel(tiny_target(), **sizes)
        give_pages(target)
        self.drafter = Eagle3Drafter(tiny_draft(), target.embed_tokens, TREE, **sizes)
        self.steps = RoundSteps(target, self.drafter, policy, TREE)
        self.texts = [[] for _ in prompts]
        self.calls = [[] for _ in prompts]
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=DEVICE)
        padded = torch.zeros((batch, int(lengths.max())), dtype=torch.int64, device=DEVICE)
        for row, prompt in zip(padded, prompts, strict=True):
            row[: len(prompt)] = torch.tensor(prompt, device=DEVICE)
        prefill = Prefill(target, self.drafter)
        prefill.run(padded, lengths=lengths)
        self.steps.sampler.set(sampling)
        self.steps.sampler.state.seen.zero_()
        self.steps.sampler.commit(padded, lengths)
        token = self.steps.sampler.sample(prefill.logits[:, None], target.cache.length[:, None])
        self.steps.sampler.commit(token, torch.ones_like(lengths))
        self.steps.load(token, prefill.taps)
        self._add([[1, 0, 0, *row] for row in token.tolist()])

    def round(self):
        steps = self.steps
        steps.begin()
        for _ in range(TREE.max_calls - 1):
            if bool(steps.stop().all()):
                break
            steps.step()
        self._add(steps.finish().tolist())

    def _add(self, rows):
        for text, made, (calls, _, accepted, *tokens) in zip(self.texts, self.calls, rows, strict=True):
            text.extend(tokens[: accepted + 1])
            made.append(calls)


@torch.inference_mode()
def decode(prompts, policy, sampling):
    rows = Rows(prompts, policy, sampling)
    while min(map(len, rows.texts)) < LENGTH:
        rows.round()
    return [text[:LENGTH] for text in rows.texts], [calls[1:] for calls in rows.calls]


@pytest.mark.parametrize("policy", [FixedDepth(3), Threshold(0.6)], ids=repr)
@pytest.mark.parametrize("sampling", [{}, {"temperature": 0.8, "seed": 5, "repetition_penalty": 1.2}])
def test_three_rows_of_different_lengths_say_what_each_says_alone(policy, sampling):
    sampling = SamplingParams(**sampling)
    together, calls = decode(PROMPTS, policy, sampling)
    for row, prompt in enumerate(PROMPTS):
        alone, made = decode([prompt], policy, sampling)
        assert together[row] == alone[0]
        rounds = min(len(made[0]), len(calls[row]))
        assert calls[row][:rounds] == made[0][:rounds]  # as deep as alone: a stopped row's tree does not change
        if sampling.temperature == 0:
            assert together[row] == hf_greedy(tiny_target(), prompt, LENGTH)
    if isinstance(policy, Threshold):
        assert len({tuple(made[:10]) for made in calls}) == 3  # the rows stop at different depths


def test_large_chunks_of_prompts_of_different_lengths(monkeypatch):
    """The short ones end in chunks before the last."""
    expected = decode(PROMPTS, FixedDepth(2), SamplingParams())
    monkeypatch.setattr("radar.engine.prefill.SIZES", {"cpu": {8: 1}, "cuda": {8: 1}})
    monkeypatch.setattr("radar.target.model.has_flash", lambda *_: True)
    monkeypatch.setattr("radar.target.model.LEAST_ROWS", 9)
    monkeypatch.setattr("radar.engine.prefill.MOST_ROWS", 24)
    assert decode(PROMPTS, FixedDepth(2), SamplingParams()) == expected


def test_a_row_that_stops_late_would_be_seen():
    """The comparison has teeth: without sticky flags a row that has stopped goes on when its beam is better again."""

    class Alternating:
        def bind(self, batch_size, tree, device):
            self.call = torch.zeros(batch_size, dtype=torch.int64, device=device)

        def reset(self):
            self.call.zero_()

        def stop(self, scores):
            self.call += 1
            rows = torch.arange(len(scores), device=scores.device)
            return (self.call == 1 + rows) | (self.call >= 5)  # row 0 stops at call 1, and would go on then

    calls = decode(PROMPTS, Alternating(), SamplingParams())[1]
    assert [set(made) for made in calls] == [{1}, {2}, {3}]
