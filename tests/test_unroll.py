"""The training-time test of a draft head: its steps are what drafting is, and one compiled graph plays them all."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from functorch.compile import make_boxed_func, nop
from safetensors.torch import load_file
from small_heads import CONFIG, HIDDEN, OPTIONS, train
from torch import Tensor
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn import functional as F

from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.train.tokens import TokenMixture
from radar.train.unroll import UnrolledAttention, play_step, unrolled_losses

Capture = pytest.CaptureFixture[str]


@pytest.fixture
def backend() -> Iterator[CompileCounterWithBackend]:
    """Counts graphs and lets nothing but autograd's part of the compiler run."""
    torch._dynamo.reset()
    yield CompileCounterWithBackend("aot_eager")
    torch._dynamo.reset()


def masked_attention(window: int) -> Callable[[int], Callable[[Tensor, Tensor, Tensor], Tensor]]:
    """The definition: all keys of all steps side by side, and a dense mask. Returns step -> that step's `attend`."""
    keys, values = [], []

    def attend_at(step: int) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
        def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
            keys.append(key)
            values.append(value)
            eye = torch.eye(window, dtype=torch.bool)
            mask = torch.cat([torch.ones(window, window, dtype=torch.bool).tril(), *[eye] * step], dim=1)
            groups = query.shape[1] // key.shape[1]
            every_key = torch.cat(keys, dim=2).repeat_interleave(groups, 1)
            every_value = torch.cat(values, dim=2).repeat_interleave(groups, 1)
            scores = query @ every_key.transpose(-1, -2) / query.shape[-1] ** 0.5
            return (scores.masked_fill(~mask, -torch.inf).softmax(-1) @ every_value).transpose(1, 2)

        return attend

    return attend_at


def plain_losses(
    draft: Eagle3Draft, aux: Tensor, embeds: Tensor, teacher: Tensor, best: Tensor, ttt_length: int
) -> Tensor:
    """The definition: step after step over all keys, each with shapes of its own."""
    rows, hidden = aux.shape[1], draft.fuse(aux)
    attend_at, results = masked_attention(rows), []
    for step in range(ttt_length):
        positions = torch.arange(step, step + rows)[None].expand(len(aux), rows)
        hidden = draft(embeds[:, step : step + rows], hidden, positions, attend_at(step))
        logits, wanted = draft.logits(hidden), best[:, step : step + rows]
        wrong = F.cross_entropy(logits.mT, teacher[:, step : step + rows].softmax(-1).mT, reduction="none")
        covered = wrong[wanted >= 0]
        agreed = (logits.argmax(-1) == wanted).float().mean()
        results.append(torch.stack((covered.sum() / max(len(covered), 1), agreed)))
    return torch.stack(results, 1)


def inputs(config: DraftConfig, ttt_length: int, batch: int = 2, rows: int = 9) -> tuple[Eagle3Draft, Tensor, ...]:
    torch.manual_seed(ttt_length)
    tokens = rows + ttt_length - 1
    teacher = 3 * torch.randn(batch, tokens, config.draft_vocab_size)
    best = torch.where(torch.rand(batch, tokens) < 0.2, -1, teacher.argmax(-1))
    best[:, -1] = -1  # the last step of a short window may have nothing to learn
    draft = Eagle3Draft(config)
    for norm in (part for name, part in draft.named_parameters() if "norm" in name):
        torch.nn.init.uniform_(norm, 0.5, 1.5)
    return draft, torch.randn(batch, rows, 3 * HIDDEN), torch.randn(batch, tokens, HIDDEN), teacher, best


def with_gradients(draft: Eagle3Draft, results: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Every step counts differently."""
    losses = results[0]
    (losses * torch.arange(1, len(losses) + 1)).sum().backward()
    found = {name: one.grad.clone() for name, one in draft.named_parameters() if one.grad is not None}
    draft.zero_grad()
    return results.detach(), found


@pytest.mark.parametrize("heads", [(4, 2), (4, 1), (3, 3)])
@pytest.mark.parametrize("ttt_length", [1, 2, 7])
def test_losses_and_gradients_are_the_definitions(heads: tuple[int, int], ttt_length: int) -> None:
    config = replace(CONFIG, num_attention_heads=heads[0], num_key_value_heads=heads[1], qk_norm=heads == (4, 1))
    given = inputs(config, ttt_length)
    draft = given[0]
    ours, gradients = with_gradients(draft, unrolled_losses(*given, ttt_length, play_step))
    plain, wanted = with_gradients(draft, plain_losses(*given, ttt_length))
    torch.testing.assert_close(ours, plain, rtol=1e-6, atol=0)
    assert len(wanted) == len(list(draft.parameters()))
    assert min(one.abs().max() for one in wanted.values()) > 1e-4
    assert gradients.keys() == wanted.keys()
    for name, gradient in gradients.items():  # of each the largest number is far above the tolerance
        torch.testing.assert_close(gradient, wanted[name], rtol=1e-5, atol=2e-6 * wanted[name].abs().max().item())


def test_one_graph_plays_all_steps(backend: CompileCounterWithBackend) -> None:
    """One window and one head of keys: sizes of one have strides of their own."""
    given = inputs(replace(CONFIG, num_key_value_heads=1), 7, batch=1)
    play = torch.compile(play_step, dynamic=False, backend=backend, fullgraph=True)
    with torch._dynamo.config.patch(error_on_recompile=True):  # and say why
        compiled, gradients = with_gradients(given[0], unrolled_losses(*given, 7, play))
    assert backend.frame_count == 1
    plain, wanted = with_gradients(given[0], unrolled_losses(*given, 7, play_step))
    torch.testing.assert_close((compiled, gradients), (plain, wanted), rtol=1e-5, atol=1e-6)


def test_unrolled_attention_equals_drafting_token_by_token() -> None:
    torch.manual_seed(2)
    draft, window, at = Eagle3Draft(CONFIG), 7, 4
    first, embeds = torch.randn(1, window, HIDDEN), torch.randn(1, window + 3, HIDDEN)
    past, hidden = [100 * torch.randn(2, 1, 2, window, 8)] * 3, first  # what is in an empty slot is not seen
    unrolled = []
    for step in range(4):
        positions, ours = torch.arange(step, window + step)[None], UnrolledAttention(torch.tensor(step), past)
        hidden = draft(embeds[:, step : step + window], hidden, positions, ours)
        past = [*past[:step], ours.now, *past[step + 1 :]][:3]
        unrolled.append(hidden[:, at])

    cache: list[tuple[Tensor, Tensor]] = []

    def decode(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        cache.append((key, value))
        keys, values = (torch.cat(part, dim=2).repeat_interleave(2, 1) for part in zip(*cache, strict=True))
        causal = query.shape[2] > 1
        out = torch.nn.functional.scaled_dot_product_attention(query, keys, values, is_causal=causal)
        return out.transpose(1, 2)

    row = draft(embeds[:, : at + 1], first[:, : at + 1], torch.arange(at + 1)[None], decode)[:, -1:]
    for step in range(4):
        torch.testing.assert_close(unrolled[step], row[:, 0], rtol=1e-5, atol=1e-5)
        row = draft(embeds[:, at + step + 1 : at + step + 2], row, torch.tensor([[at + step + 1]]), decode)


def test_a_later_step_and_a_later_training_compile_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, backend: CompileCounterWithBackend
) -> None:
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    options = replace(OPTIONS, steps=3, batch_size=2)
    compiled = train(tmp_path / "compiled", replace(options, compile=True))
    gc.collect()  # the head that it was compiled for
    train(tmp_path / "other", replace(options, compile=True), text=TokenMixture([np.arange(3000) % 20 + 4]))
    assert backend.frame_count == 1
    plain = train(tmp_path / "plain", replace(options, compile=False))
    assert compiled["loss"] == pytest.approx(plain["loss"], abs=2e-4)  # of four decimals
    assert compiled["agreement"] == plain["agreement"]


def fails_at_once(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
    raise RuntimeError("no compiler")


def fails_in_the_midst(graph: torch.fx.GraphModule, _: list[Tensor]) -> Any:
    """When gradients of one step are there."""
    calls = []

    def once(*args: Any) -> Any:
        calls.append(len(args))
        if len(calls) > 1:
            raise RuntimeError("no memory")
        return graph(*args)

    return make_boxed_func(once)


@pytest.mark.parametrize(
    "broken",
    [
        fails_at_once,
        aot_autograd(fw_compiler=nop, bw_compiler=fails_at_once),
        aot_autograd(fw_compiler=nop, bw_compiler=fails_in_the_midst),
    ],
    ids=["forward", "backward", "midst"],
)
def test_training_goes_on_without_a_compiler(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture, broken: Any
) -> None:
    torch._dynamo.reset()
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=broken))
    options = replace(OPTIONS, steps=3, batch_size=2)
    result = train(tmp_path / "fallen", replace(options, compile=True))
    said = capsys.readouterr().err
    assert said.count("torch.compile failed") == 1
    assert "training goes on without it" in said
    plain = train(tmp_path / "plain", replace(options, compile=False))
    assert [result[name] for name in ("steps", "loss", "agreement")] == [
        plain[name] for name in ("steps", "loss", "agreement")
    ]
    weights = [load_file(tmp_path / name / "model.safetensors") for name in ("fallen", "plain")]
    torch.testing.assert_close(*weights, rtol=0, atol=0)
    torch._dynamo.reset()
