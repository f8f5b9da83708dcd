"""A head that reads the target's features is told from one that does not, although both draft next to nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import radar
from radar.draft.checkpoint import load_draft
from radar.draft.eagle3 import Eagle3Draft
from radar.target.attention import causal_ancestors
from radar.target.load import load_model, load_tokenizer
from radar.target.model import TargetModel
from radar.tools.doctor import DEAF, READS
from radar.tools.features import _features, _log_probs, feature_use
from radar.tools.prompts import encode_prompt, load_prompts

ASSETS = Path(radar.__file__).parent / "assets"


@pytest.fixture(scope="module")
def target():
    model = load_model(str(ASSETS / "target"), device=torch.device("cpu"), dtype=torch.float32, progress=False)
    tokenizer = load_tokenizer(str(ASSETS / "target"))
    return model, [encode_prompt(line, tokenizer) for line in load_prompts(ASSETS / "prompts.jsonl", limit=8)]


def as_trained(draft: Eagle3Draft) -> None: ...


def half_forgotten(draft: Eagle3Draft) -> None:
    """Drafts 1.1 tokens a pass."""
    generator = torch.Generator().manual_seed(1)
    for weight in draft.parameters():
        if weight.dim() > 1:
            weight += 0.8 * weight.std() * torch.randn(weight.shape, generator=generator)


def of_another_target(seed: int) -> Callable[[Eagle3Draft], None]:
    """Of one whose features are these, turned."""

    def change(draft: Eagle3Draft) -> None:
        generator = torch.Generator().manual_seed(seed)
        taps = draft.fc.weight.unflatten(1, (3, 256))
        for tap in range(3):
            taps[:, tap] = taps[:, tap] @ torch.linalg.qr(torch.randn(256, 256, generator=generator))[0]

    return change


@pytest.mark.parametrize(
    ("change", "low", "high"),
    [
        (as_trained, 0.83, 1.0),
        (half_forgotten, READS, 0.75),
        *((of_another_target(seed), 0.4, DEAF) for seed in range(3)),
    ],
)
def test_a_heads_own_target_is_told_by_its_features(target, change, low, high):
    model, prompts = target
    draft = load_draft(ASSETS / "draft", target_hidden_size=256, device=torch.device("cpu"), dtype=torch.float32)
    change(draft)
    use = feature_use(model, draft, prompts, [2] * len(prompts))
    assert low < use.share < high
    proposed = set(draft.target_ids().tolist())
    assert use.places == sum(token in proposed for prompt in prompts for token in prompt[2:])


def test_it_reads_what_a_decoder_reads(target):
    """The taps are the target's own, and a token's score is that of the text up to it."""
    model, (text, *_) = target
    draft = load_draft(ASSETS / "draft", target_hidden_size=256, device=torch.device("cpu"), dtype=torch.float32)
    taps = draft.config.eagle_aux_hidden_state_layer_ids
    with torch.inference_mode():
        ours = TargetModel(model, max_length=64, max_rows=64, tap_layers=taps)
        positions = torch.arange(len(text))[None]
        expected = ours.verify(torch.tensor([text]), positions, causal_ancestors(len(text), ours.device))[1][0]
        features = _features(model, text, taps)
        assert torch.allclose(features, expected, atol=1e-4)
        whole = _log_probs(model, draft, text, 2, features)
        part = _log_probs(model, draft, text[:15], 2, features[:15])
    assert len(part) > 8
    assert torch.allclose(whole[: len(part)], part, atol=1e-4)


def test_only_the_targets_own_tokens_are_compared(target):
    model, prompts = target
    draft = load_draft(ASSETS / "draft", target_hidden_size=256, device=torch.device("cpu"), dtype=torch.float32)
    proposed = set(draft.target_ids().tolist())
    starts = [len(prompts[0]) - 4, 2, 2]
    use = feature_use(model, draft, [prompts[0], [1, 2], [3]], starts)
    assert use.places == sum(token in proposed for token in prompts[0][-4:])
    assert feature_use(model, draft, [[1, 2]], [1]) == (0.5, 0)
