"""Processors on the host: asked up to the text's end and no further, and let go there."""

import gc
import weakref

import pytest
import torch
from fakes import DEVICE, tiny_draft, tiny_target
from transformers import LogitsProcessor, StoppingCriteria

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig

PROMPT = torch.tensor([[5, 3, 2, 1, 4]], device=DEVICE)


@pytest.fixture(scope="module")
def model():
    """Six tokens: random drafts are right half of the time, so that rounds reach beyond the end."""
    return tiny_target(vocab_size=6)


@pytest.fixture(scope="module")
def ours(model):
    return RadarDecoder(
        model, draft=tiny_draft(vocab_size=6, draft_vocab_size=5), policy=FixedDepth(4), max_length=200,
        tree=TreeConfig(total_tokens=20, tree_top_k=3, max_calls=6), fallback=False,
    )  # fmt: skip


@pytest.fixture(scope="module")
def plain(model):
    return AutoregressiveDecoder(model, max_length=200)


class Asked(LogitsProcessor):
    """Changes nothing, and notes every text it is asked about."""

    def __init__(self):
        self.texts = []

    def __call__(self, input_ids, scores):
        self.texts.append(input_ids[0].tolist())
        return scores


@pytest.mark.parametrize("limit", range(1, 20, 2))
def test_a_plan_that_ends_with_the_limit_is_never_overrun(model, ours, limit):
    """A processor that forces a text of its own has nothing to say behind it."""
    planned = model.generate(PROMPT, max_new_tokens=limit)[0, PROMPT.shape[1] :].tolist()

    def force(ids, scores):
        forced = torch.full_like(scores, -torch.inf)
        forced[0, planned[ids.shape[1] - PROMPT.shape[1]]] = 0.0
        return forced

    found = ours.generate_ids(PROMPT, logits_processor=[force], max_new_tokens=limit)
    assert found[0, PROMPT.shape[1] :].tolist() == planned


@pytest.mark.parametrize("count", range(5, 15))
def test_criteria_and_processors_are_asked_once_a_token_to_the_end_alone(ours, count):
    asked, lengths = Asked(), []

    class At(StoppingCriteria):
        def __call__(self, ids, scores, **kwargs):
            lengths.append(ids.shape[1])
            return torch.tensor([ids.shape[1] == PROMPT.shape[1] + count])

    options = {"stopping_criteria": [At()], "max_new_tokens": 60}
    found = ours.generate_ids(PROMPT, logits_processor=[asked], **options)
    assert found.shape[1] == PROMPT.shape[1] + count
    assert len(asked.texts) == count
    assert lengths == list(range(PROMPT.shape[1] + 1, PROMPT.shape[1] + count + 1))


def test_a_processor_is_let_go_when_its_text_ends(ours, plain):
    for decoder in (ours, plain):
        processor = Asked()
        known = weakref.ref(processor)
        decoder.generate_ids(PROMPT, logits_processor=[processor], max_new_tokens=3)
        del processor
        gc.collect()
        assert known() is None
