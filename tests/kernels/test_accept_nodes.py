"""accept_nodes: the kernel against the reference, which tests/test_verify.py checks against a walk in plain Python."""

import pytest
import torch
from trees import accept_in, acceptance

from radar_kernels import Acceptance, accept_nodes, mark_seen, reference_tree

BACKENDS = ["triton", "torch"]
VOCABULARY = 3  # few tokens: long branches


def random_tree(generator, nodes, max_depth):
    """Tokens, parents, validity of one tree, sorted by depth; siblings hold different tokens."""
    tokens, parents, depths = [0], [0], [0]
    for _ in range(20 * nodes):
        parent = int(torch.randint(len(tokens), (1,), generator=generator))
        token = int(torch.randint(VOCABULARY, (1,), generator=generator))
        taken = any(p == parent and t == token for p, t in zip(parents[1:], tokens[1:], strict=True))
        if len(tokens) < nodes and depths[parent] < max_depth and not taken:
            tokens.append(token), parents.append(parent), depths.append(depths[parent] + 1)
    order = sorted(range(len(tokens)), key=lambda node: depths[node])
    place = {node: i for i, node in enumerate(order)}
    padding = nodes - len(tokens)
    return (
        [tokens[node] for node in order] + padding * [0],
        [place[parents[node]] for node in order] + padding * [0],
        [True] * len(order) + padding * [False],
    )


def make(*, batch=1, nodes=20, max_accepted=6, seed=0, device="cpu"):
    generator = torch.Generator().manual_seed(seed)
    tokens, parents, valid = zip(*(random_tree(generator, nodes, max_accepted - 1) for _ in range(batch)), strict=True)
    target = torch.randint(VOCABULARY, (batch, nodes), generator=generator)
    tensors = torch.tensor(tokens), torch.tensor(parents), torch.tensor(valid), target
    return [tensor.to(device) for tensor in tensors]


def assert_same(got, expected):
    for name, a, b in zip(Acceptance._fields, got, expected, strict=True):
        assert a.dtype == torch.int64
        assert torch.equal(a, b), name


@pytest.mark.parametrize(
    ("nodes", "max_accepted"), [(2, 2), (13, 4), (60, 17), (64, 9), (65, 12), (200, 17), (256, 32)]
)
def test_kernel_equals_reference(nodes, max_accepted, device):
    lengths = set()
    for seed in range(4):
        inputs = make(batch=3, nodes=nodes, max_accepted=max_accepted, seed=seed, device=device)
        expected = accept_in(*inputs, max_accepted=max_accepted, backend="torch")
        assert_same(accept_in(*inputs, max_accepted=max_accepted, backend="triton"), expected)
        lengths |= set(expected.accept_length.tolist())
    assert {0, 1} <= lengths or len(lengths) > 2  # the trees were worth walking


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_chain_is_accepted_to_its_end(backend, device):
    nodes = torch.arange(17, device=device)[None]
    inputs = nodes + 100, (nodes - 1).clamp(min=0), nodes >= 0, nodes + 101
    out = accept_in(*inputs, max_accepted=17, backend=backend)
    assert torch.equal(out.path, nodes)
    assert torch.equal(out.tokens, nodes + 101)
    assert (out.accept_length.tolist(), out.num_tokens.tolist()) == ([16], [17])
    assert out.next_token.tolist() == [117]
    broken = accept_in(*inputs[:3], inputs[3] + 1000 * (nodes == 4), max_accepted=17, backend=backend)
    assert broken.path.tolist() == [[0, 1, 2, 3, 4] + 12 * [0]]
    assert broken.tokens.tolist() == [[101, 102, 103, 104, 1105] + 12 * [101]]
    assert broken.next_token.tolist() == [1105]


@pytest.mark.parametrize("backend", BACKENDS)
def test_padding_and_what_hangs_off_it_is_never_accepted(backend, device):
    tokens = torch.tensor([[4, 0, 0, 0]], device=device)
    parents = torch.tensor([[0, 0, 1, 0]], device=device)
    valid = torch.tensor([[True, False, True, False]], device=device)
    out = accept_in(tokens, parents, valid, torch.zeros_like(tokens), max_accepted=3, backend=backend)
    assert out.path.tolist() == [[0, 0, 0]]
    assert out.accept_length.tolist() == [0]


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_tree, "accept_nodes", lambda *args, **options: "reference")
    assert accept_nodes(*arguments().values()) == "reference"


@pytest.mark.parametrize("backend", BACKENDS)
def test_the_rounds_tokens_join_the_history(backend, device):
    """Those that were accepted and the target's own, no other, and not NO_TOKEN; bits that are there stay."""
    nodes = torch.arange(4, device=device)[None].expand(2, -1)
    target = torch.tensor([[31, 64, 9, 9], [31, -1, 9, 9]], device=device)
    tokens = torch.tensor([[0, 31, 40, 41], [0, 31, 40, 41]], device=device)
    seen = torch.zeros(2, 4, dtype=torch.int32, device=device)
    seen[:, 3] = expected = torch.tensor([5, 6], dtype=torch.int32, device=device)
    out = accept_in(tokens, (nodes - 1).clamp(min=0), nodes >= 0, target, max_accepted=3, seen=seen, backend=backend)
    assert (out.accept_length.tolist(), out.next_token.tolist()) == ([1, 1], [64, -1])
    assert seen.tolist() == [[-(2**31), 0, 1, 5], [-(2**31), 0, 0, 6]]
    twin = torch.zeros_like(seen)
    mark_seen(twin, out.tokens, out.num_tokens)
    twin[:, 3] |= expected
    assert torch.equal(twin, seen)


def arguments(batch=1, device="cpu"):
    names = "draft_tokens", "parents", "valid", "target_tokens"
    rest = {"calls": torch.ones(batch, device=device).long(), "into": acceptance(batch, 6, device)}
    rest["seen"] = torch.zeros(batch, 4, dtype=torch.int32, device=device)
    return dict(zip(names, make(batch=batch, device=device), strict=True)) | rest


def test_the_operator_is_registered_correctly(device):
    *tree, into, seen = arguments(2, device).values()
    torch.library.opcheck(torch.ops.radar_kernels.accept_nodes.default, (*tree, *into, seen))


BAD = {
    "N from 1 to 256": {"target_tokens": torch.zeros(1, 257).long()},
    "A from 2 to 32": {"path": torch.zeros(1, 33).long()},
    "parents must be int64": {"parents": torch.zeros(1, 20)},
    r"draft_tokens must be int64 \[1, 20\]": {"draft_tokens": torch.zeros(1, 19).long()},
    "valid must be bool": {"valid": torch.zeros(1, 20)},
    r"result must be int64 \[1, 9\]": {"result": torch.zeros(1, 8).long()},
    "seen must be int32": {"seen": torch.zeros(1, 4)},
    "tokens is written in place and must be contiguous": {"tokens": torch.zeros(1, 12).long()[:, ::2]},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    given = arguments()
    given["into"] = given["into"]._replace(**{k: v for k, v in change.items() if k in Acceptance._fields})
    given |= {name: value for name, value in change.items() if name in given}
    with pytest.raises(ValueError, match=f"accept_nodes: .*{message}"):
        accept_nodes(**given, backend="triton")
