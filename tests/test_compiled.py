"""Forwards under torch.compile: one whole graph each, for every family, and as many decoders as there are."""

import pytest
import torch
from fakes import DEVICE, FAMILIES, tiny_draft, tiny_target

from radar import TreeConfig
from radar.draft.drafter import Eagle3Drafter
from radar.target.attention import attend
from radar.target.compiled import compiled
from radar.target.model import TargetModel

IDS = torch.tensor([[1, 5, 3, 2]], device=DEVICE)


@pytest.fixture(autouse=True)
def _trace_only(monkeypatch):
    """Trace, functionalise and run: what Inductor would generate code from, without the minutes it takes."""
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **k: real(f, **{**k, "backend": "aot_eager", "options": None}))


@pytest.mark.parametrize("family", FAMILIES)
def test_a_verification_is_one_graph_and_says_the_same(family):
    model = tiny_target(family)
    plain, fast = (TargetModel(model, max_length=64, max_rows=8, compile=on) for on in (False, True))
    for target in (plain, fast):
        with torch.inference_mode():
            for _ in range(3):
                logits, taps = target.verify(*target.chain(IDS))
                target.advance(4)
        target.seen = logits, taps, target.cache.keys.clone()
    for ours, theirs in zip(fast.seen, plain.seen, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)
    assert fast.seen[2].abs().sum() > 0


@pytest.mark.slow
def test_more_decoders_than_the_compiler_allows_recompilations():
    model = tiny_target(num_hidden_layers=2)
    expected = None
    for rows in range(2, 12):  # it allows eight
        target = TargetModel(model, max_length=64, max_rows=rows, tap_layers=(0, 1), compile=True)
        with torch.inference_mode():
            logits, _ = target.verify(*target.chain(IDS[:, :2]))
        expected = logits if expected is None else expected
        torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def test_the_drafts_calls_are_whole_graphs():
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=64)
    tree = TreeConfig(total_tokens=20, max_calls=4, tree_top_k=4)
    found = []
    for on in (False, True):
        drafter = Eagle3Drafter(tiny_draft(), target.embed_tokens, tree, max_length=64, max_rows=8, compile=on)
        with torch.inference_mode():
            torch.manual_seed(1)
            taps = torch.randn(1, tree.max_accepted, 96, device=DEVICE)
            drafter.begin(IDS[:, :1].expand(1, tree.max_accepted), taps, torch.tensor([3], device=DEVICE))
            drafter.step()
            drafter.step()
        found.append((drafter.tree.beam_scores.clone(), drafter.tree.beam_tokens.clone(), drafter.cache.keys.clone()))
    for plain, fast in zip(*found, strict=True):
        torch.testing.assert_close(fast, plain, atol=1e-5, rtol=1e-5)


def test_decoders_of_one_model_share_what_is_compiled():
    model, made = tiny_target(num_hidden_layers=2), torch._dynamo.utils.counters["stats"]
    counts = []
    for length in (64, 48, 96):
        target = TargetModel(model, max_length=length, max_rows=8, tap_layers=(0, 1), compile=True)
        before = made["unique_graphs"]
        with torch.inference_mode():
            target.verify(*target.chain(IDS))
            target.verify(*target.chain(IDS[:, :2]))
        counts.append(made["unique_graphs"] - before)
    assert counts == [2, 0, 0]


def branching(x):
    return x + 1 if bool(x.sum() > 0) else x - 1


def test_a_graph_break_is_an_error():
    with pytest.raises(torch._dynamo.exc.TorchDynamoException):
        compiled(branching)(torch.ones(2))


def test_attention_without_a_cache_is_an_error():
    x = torch.zeros(1, 2, 3, 4)
    with pytest.raises(RuntimeError, match="no cache is in use"):
        attend(x, x, x, torch.zeros(1, dtype=torch.int64), torch.zeros(1, 3, 1, dtype=torch.int64), 0, 1.0)
