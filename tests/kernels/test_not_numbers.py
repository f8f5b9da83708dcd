"""Logits that are not numbers: sampling says so, in the kernel and in the reference alike, and a beam goes on."""

import importlib

import pytest
import torch
from sampling_cases import INF, SETTINGS, make, make_state, make_tree
from tree_cases import one_level
from trees import accept_in

from radar_kernels import greedy_tokens, reference, sample_tokens, store_rows, tree_attention
from radar_kernels.reference_tree import pack_bits
from radar_kernels.sample_tokens import NO_TOKEN

op = importlib.import_module("radar_kernels.sample_tokens")
NAN = float("nan")
BACKENDS = ["triton", "torch"]
VOCABULARY = 600  # two blocks of 512
# what stands at which token: in both blocks, behind the best token and in front of it, and in all of them
BAD = {
    "NaN first": (slice(0, 1), NAN),
    "NaN last": (slice(VOCABULARY - 1, VOCABULARY), NAN),
    "a part of NaN": (slice(256, 512), NAN),
    "+inf": (slice(530, 531), INF),
    "all -inf": (slice(None), -INF),
}
WORSE = BAD | {"all NaN": (slice(None), NAN), "negative NaN": (slice(70, 71), -NAN), "all +inf": (slice(None), INF)}


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch):
    monkeypatch.setattr(op, "BLOCK", 512)


def spoil(logits, bad=BAD):
    """The first rows are bad ones."""
    for row, (where, value) in enumerate(bad.values()):
        logits[:, row, where] = value
    return logits


def without_token(name, bad=BAD):
    """As in transformers +inf is the best score, the first of several; softmax makes NaN of it, and sampling fails."""
    best = {"+inf": 530, "all +inf": 0} if name == "greedy" else {}
    return [best.get(kind, NO_TOKEN) for kind in bad]


@pytest.mark.parametrize("name", ["greedy", "temperature 1", "top_k", "top_k over V", "top_p", "min_p", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_without_a_token_say_so_and_spoil_no_other(name, backend, device):
    """The good row gets the token that it gets alone."""
    logits, positions = make(1, len(BAD) + 1, VOCABULARY, device=device)
    state = make_state(1, VOCABULARY, device, **SETTINGS[name])
    alone = sample_tokens(logits[:, -1:], positions[:, -1:], state, backend="torch")
    tokens = sample_tokens(spoil(logits), positions, state, backend=backend)
    assert tokens[0].tolist() == [*without_token(name), int(alone)]


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("name", ["greedy", "all"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_types_of_16_bits(name, dtype, backend, device):
    logits, positions = make(1, len(BAD) + 1, VOCABULARY, dtype, device)
    state = make_state(1, VOCABULARY, device, **SETTINGS[name])
    tokens = sample_tokens(spoil(logits), positions, state, backend=backend)
    assert tokens[0, :-1].tolist() == without_token(name)
    assert tokens[0, -1] >= 0


@pytest.mark.parametrize("name", ["greedy", "temperature 1", "top_k", "top_p"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_banned_tokens_are_legal_unless_nothing_is_left(name, backend, device):
    logits, positions = make(1, 3, 300, device=device)
    logits[0, 0, 1:] = -INF
    bias = torch.zeros(1, 300, device=device)
    bias[0, 17:] = -INF
    logits[0, 1, :17] = -INF
    state = make_state(1, 300, device, logit_bias=bias, **SETTINGS[name])
    tokens = sample_tokens(logits, positions, state, backend=backend)[0].tolist()
    assert tokens[:2] == [0, NO_TOKEN]
    assert 0 <= tokens[2] < 17


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bias_does_not_heal_what_is_not_a_number(backend, device):
    logits, positions = make(1, 2, 300, device=device)
    logits[0, 0, 9], logits[0, 1, 9] = NAN, INF
    bias = torch.zeros(1, 300, device=device)
    bias[0, 9] = -INF
    state = make_state(1, 300, device, logit_bias=bias)
    assert sample_tokens(logits, positions, state, backend=backend).tolist() == [[NO_TOKEN, NO_TOKEN]]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_tree_with_a_history(backend, device):
    logits, positions = make(1, 3, 300, device=device)
    state, tree = make_state(1, 300, device, **SETTINGS["all"]), make_tree(1, 3, 300, device)
    expected = sample_tokens(logits, positions, state, **tree, backend="torch")
    logits[0, 1, 299], expected[0, 1] = NAN, NO_TOKEN
    assert torch.equal(sample_tokens(logits, positions, state, **tree, backend=backend), expected)


def test_lists_that_overflow(device, monkeypatch):
    monkeypatch.setattr(op, "ROOM", 4)
    logits, positions = make(1, 2, VOCABULARY, device=device, spread=1.0)
    logits[0, 0, 500] = NAN
    tokens = sample_tokens(logits, positions, make_state(1, VOCABULARY, device, **SETTINGS["all"]), backend="triton")
    assert tokens[0, 0] == NO_TOKEN
    assert tokens[0, 1] >= 0


def test_the_greedy_shortcut_follows_the_same_rule(device):
    logits, positions = make(1, len(WORSE) + 2, VOCABULARY, device=device, spread=0.5)
    logits = spoil((logits * 2).round(), WORSE)  # ties
    state = make_state(1, VOCABULARY, device, temperature=0.0)
    expected = sample_tokens(logits, positions, state, backend="triton")
    assert expected[0, :-2].tolist() == without_token("greedy", WORSE)
    assert torch.equal(greedy_tokens(logits), expected)
    assert torch.equal(sample_tokens(logits, positions, state, backend="torch"), expected)


@pytest.mark.parametrize("top_k", [0, 7])
@pytest.mark.parametrize("backend", BACKENDS)
def test_top_p_of_nothing_keeps_the_best_token(backend, top_k, device):
    """1e-46 is above 0 as Python counts, and 0 in float32."""
    logits, positions = make(1, 3, 300, device=device)
    tokens = sample_tokens(logits, positions, make_state(1, 300, device, top_p=1e-46, top_k=top_k), backend=backend)
    assert torch.equal(tokens, logits.argmax(-1))


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_branch_ends_where_the_target_has_no_token(backend, device):
    """A chain whose third node's scores are not numbers: what came before counts, and the next token says why."""
    node = torch.arange(6, device=device)[None]
    target = node + 11
    target[0, 2] = NO_TOKEN
    out = accept_in(node + 10, (node - 1).clamp(min=0), node >= 0, target, max_accepted=6, backend=backend)
    assert out.accept_length.tolist() == [2]
    assert out.tokens[0, :3].tolist() == [11, 12, NO_TOKEN]
    assert out.next_token.tolist() == [NO_TOKEN]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("value", [NAN, -NAN, INF], ids=["NaN", "negative NaN", "+inf"])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_bad_logit_of_a_draft_counts_as_minus_infinity(backend, value, dtype, device):
    logits, parents = torch.randn(2, 5, 300, device=device).to(dtype), -torch.rand(2, 5, device=device)
    clean = logits.clone()
    for row, token in ((0, 0), (2, 299), (2, 131)):
        logits[0, row, token], clean[0, row, token] = value, -INF
    got = one_level(logits, parents, 5, backend=backend)
    for a, b in zip(got, one_level(clean, parents, 5, backend=backend), strict=True):
        assert torch.equal(a, b)
    assert got.scores.isfinite().all()


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_draft_row_without_numbers_is_dead(backend, value, device):
    """Its candidates are -inf, so nobody selects them; the beam is that of the other rows."""
    logits, parents = torch.randn(1, 3, 300, device=device), -torch.rand(1, 3, device=device)
    logits[0, 1] = value
    got = one_level(logits, parents, 3, backend=backend)
    assert (got.candidate_scores[0, 1] == -INF).all()
    assert ((got.candidate_tokens >= 0) & (got.candidate_tokens < 300)).all()
    alive = reference.topk_confidence(logits[:, ::2], parents[:, ::2], 3)
    torch.testing.assert_close(got.scores, alive.scores)
    assert not (got.indices // 3 == 1).any()
    alone = one_level(logits[:, 1:2], None, 3, backend=backend)
    assert (alone.scores == -INF).all()


@pytest.mark.parametrize("bits", [32, 16])
@pytest.mark.parametrize("parts", [(0, 1), (0,), (1,)], ids=["key and value", "key", "value"])
@pytest.mark.parametrize("bad", [NAN, INF, -INF])
@pytest.mark.parametrize("backend", BACKENDS)
def test_a_node_without_numbers_spoils_those_that_see_it_alone(backend, bad, parts, bits, device):
    """Nodes 2 and 4 see node 2. To the others it has a weight of 0, and 0 times NaN is NaN."""
    dtype = torch.float32 if bits == 32 else torch.float16 if device.type == "cpu" else torch.bfloat16
    visible = torch.eye(6, dtype=torch.bool, device=device)[None]
    visible[0, 4, 2] = True
    query = torch.randn(1, 4, 6, 16, device=device).to(dtype)
    new, caches = (torch.randn(2, 1, 2, rows, 16, device=device).to(dtype) for rows in (6, 64))
    length = torch.tensor([20], device=device)

    def attend():
        store_rows(*caches, *new, length, backend=backend)
        return tree_attention(query, *caches, length, pack_bits(visible), backend=backend)[0]

    clean = attend()
    for part in parts:
        new[part][:, :, 2, 3] = bad
    found = attend()
    assert torch.equal(found[[0, 1, 3, 5]], clean[[0, 1, 3, 5]])
    assert found[[2, 4]].isnan().all()
