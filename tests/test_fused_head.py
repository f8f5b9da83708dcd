"""The draft head in kernels: what its modules propose, for every layout of a head."""

import copy
import functools

import pytest
import torch
from fakes import DEVICE, tiny_target
from torch import nn

from radar import DraftConfig, TreeConfig
from radar.draft import fused_head
from radar.draft.drafter import Eagle3Drafter
from radar.draft.eagle3 import Eagle3Draft
from radar.draft.narrow import check_draft_dtype, weight_dtype
from radar.errors import UsageError
from radar.target.fingerprint import fingerprint
from radar_kernels import quantize_rows
from radar_kernels.quantize_rows import unpack_rows

TREE = TreeConfig(total_tokens=20, max_calls=4, tree_top_k=4)
LAYOUTS = {
    "EAGLE-3": {},
    "biases": {"attention_bias": True, "mlp_bias": True},
    "normed residual": {"norm_before_residual": True},
    "normed output": {"norm_output": True},
    "norms of heads": {"qk_norm": True},
}


def head(**layout):
    config = DraftConfig(
        hidden_size=32, intermediate_size=40, num_attention_heads=4, num_key_value_heads=2, head_dim=8, vocab_size=17,
        draft_vocab_size=13, target_hidden_size=32, **layout,
    )  # fmt: skip
    torch.manual_seed(1)
    draft = Eagle3Draft(config).eval().requires_grad_(False)
    for parameter in draft.parameters():
        parameter.normal_(0.0 if parameter.dim() > 1 else 1.0, 0.2)
    return draft.to(DEVICE)


def proposed(draft, *, fuse, batch=1, narrow=None, prompt=3, twice=False, expanded=None):
    """What is on the tree after three calls, and in the cache. Embeddings are doubled, `twice` by a hook. With
    `expanded` a call expands so many of a level."""
    embed = tiny_target().get_input_embeddings()
    if twice:
        embed.register_forward_hook(lambda module, inputs, output: 2 * output)
    else:
        embed.weight.data *= 2
    drafter = Eagle3Drafter(draft, embed, TREE, max_length=64, max_rows=8, batch_size=batch)
    drafter._bound.groups, drafter._bound.heads = [], {}
    if fuse:
        drafter._bound.fuse(draft)
        assert [*drafter._bound.heads] == [torch.float32]
    if narrow is not None:
        drafter._bound.narrow(draft, narrow)
        drafter.draft_dtype = narrow
    if expanded:
        drafter = drafter.first(batch, TREE.total_tokens, expanded)
    torch.manual_seed(2)
    taps = torch.randn(batch, TREE.max_accepted, 96, device=DEVICE)
    tokens = torch.randint(17, (batch, TREE.max_accepted), device=DEVICE)
    with torch.inference_mode():
        drafter.extend(tokens[:, :3], taps[:, :3], prompt)
        drafter.begin(tokens, taps, torch.randint(1, TREE.max_accepted, (batch,), device=DEVICE))
        for _ in range(2):
            drafter.step()
    assert not any("forward" in module.__dict__ for module in draft.modules())
    tree = drafter.tree
    return tree.beam_tokens, tree.beam_scores, drafter.hidden, drafter.cache.keys, drafter.cache.values


def assert_the_same(found, expected):
    for ours, theirs in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_the_same_proposals(layout, monkeypatch):
    draft = head(**layout)
    expected = proposed(draft, fuse=False)
    assert_the_same(proposed(draft, fuse=True), expected)
    for name in ("draft_rows", "add_rms_norm", "rotate_store", "silu_mul"):
        op = getattr(fused_head, name)
        monkeypatch.setattr(fused_head, name, functools.partial(op, backend="triton"))
    assert_the_same(proposed(draft, fuse=True), expected)


@pytest.mark.parametrize("fuse", [False, True])
def test_an_embedding_that_does_more_than_look_up_is_called(fuse):
    draft = head()
    assert_the_same(proposed(draft, fuse=fuse, batch=2, twice=True), proposed(draft, fuse=False, batch=2))


def test_some_of_a_level_are_expanded_in_every_text(monkeypatch):
    draft, rows = head(), {"batch": 3, "expanded": 2}
    expected = proposed(draft, fuse=False, **rows)
    assert not torch.equal(expected[0], proposed(draft, fuse=False, batch=3)[0])
    for name in ("draft_rows", "add_rms_norm", "rotate_store", "silu_mul"):
        op = getattr(fused_head, name)
        monkeypatch.setattr(fused_head, name, functools.partial(op, backend="triton"))
    assert_the_same(proposed(draft, fuse=True, **rows), expected)


def test_every_text_of_a_batch_has_its_own_length():
    draft = head()
    assert_the_same(proposed(draft, fuse=True, batch=3), proposed(draft, fuse=False, batch=3))


def rounded(draft, dtype):
    """A head whose weights are those of 8 bits, written out."""
    draft = copy.deepcopy(draft)
    for linear in (module for module in draft.modules() if isinstance(module, nn.Linear)):
        weight, scale = quantize_rows(linear.weight, dtype)
        linear.weight.copy_(unpack_rows(weight.float(), linear.in_features) * scale[:, None])
    return draft


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn], ids=str)
@pytest.mark.parametrize("layout", LAYOUTS.values(), ids=LAYOUTS)
def test_weights_of_8_bits_propose_what_they_stand_for(dtype, layout):
    draft = head(**layout)
    found = proposed(draft, fuse=True, narrow=dtype, prompt=0)  # which goes through the head's own weights
    assert_the_same(found, proposed(rounded(draft, dtype), fuse=False, prompt=0))


def test_copies_follow_the_weights_where_they_are():
    draft = head()
    drafter = Eagle3Drafter(draft, tiny_target().get_input_embeddings(), TREE, max_length=64, max_rows=8)
    bound = drafter._bound
    bound.fuse(draft)
    bound.narrow(draft, torch.int8)
    bound._print = fingerprint(draft)
    copy_of = bound.heads[torch.int8].lm_head
    at, before = copy_of.weight.data_ptr(), copy_of.weight.clone()
    draft.lm_head.weight.neg_()
    bound.refresh(draft)
    assert copy_of.weight.data_ptr() == at
    assert torch.equal(copy_of.weight, -before)


def test_what_a_heads_products_read():
    draft = head()
    assert weight_dtype(None, draft, fused=False) == torch.float32
    assert weight_dtype(check_draft_dtype("float32"), draft, fused=True) == torch.float32
    with pytest.raises(UsageError, match='"int8" needs a Hopper GPU'):
        weight_dtype(torch.int8, draft, fused=False)
    with pytest.raises(UsageError, match=r"got torch\.float16"):
        weight_dtype(torch.float16, draft, fused=True)
    with pytest.raises(UsageError, match="or None, got 'int7'"):
        check_draft_dtype("int7")


def hook(draft):
    draft.midlayer.mlp.register_forward_hook(lambda *_: None)


def hook_on_the_head(draft):
    draft.register_forward_hook(lambda *_: None)


def forward(draft):
    draft.norm.forward = lambda x: x


def other_norm(draft):
    draft.midlayer.hidden_norm = nn.RMSNorm(32)


def other_type(draft):
    draft.norm.double()


def adapter(draft):
    draft.midlayer.self_attn.o_proj.__class__ = type("Adapter", (nn.Linear,), {})


CHANGES = [hook, hook_on_the_head, forward, other_norm, other_type, adapter]


@pytest.mark.parametrize("change", CHANGES, ids=lambda change: change.__name__)
def test_a_head_that_was_changed_runs_its_modules(change):
    draft = head()
    drafter = Eagle3Drafter(draft, tiny_target().get_input_embeddings(), TREE, max_length=64, max_rows=8)
    drafter._bound.fuse(draft)
    assert drafter._bound.heads
    change(draft)
    drafter._bound.fuse(draft)
    assert not drafter._bound.heads
