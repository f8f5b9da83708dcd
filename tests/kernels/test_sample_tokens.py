"""sample_tokens: noise against published integers, the kernel against the reference, token for token."""

import importlib
import os

import pytest
import torch

from radar_kernels import SamplingState, mark_seen, reference_sampling, sample_tokens
from radar_kernels._launch import jit, tl
from radar_kernels.noise import gumbel, uniforms, uniforms_of

op = importlib.import_module("radar_kernels.sample_tokens")
INF = float("inf")
# the generator's published vectors: counter, key, output (kat_vectors of Random123)
VECTORS = [
    ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
    ((0xFFFFFFFF,) * 4, (0xFFFFFFFF,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
    (
        (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
        (0xA4093822, 0x299F31D0),
        (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
    ),
]


def make_state(batch, vocabulary, device="cpu", **values):
    """All off; values are numbers, or one for each sequence."""

    def full(name, off, dtype=torch.float32):
        value = torch.as_tensor(values.get(name, off), dtype=dtype, device=device)
        return value.expand(batch).contiguous()

    bias = values.get("logit_bias")
    return SamplingState(
        seed=full("seed", 1, torch.int64),
        temperature=full("temperature", 1.0),
        top_k=full("top_k", 0, torch.int32),
        top_p=full("top_p", 1.0),
        min_p=full("min_p", 0.0),
        repetition_penalty=full("repetition_penalty", 1.0),
        biased=full("biased", bias is not None, torch.bool),
        logit_bias=torch.zeros(batch, vocabulary, device=device) if bias is None else bias,
        seen=torch.randint(-(2**31), 2**31, (batch, -(-vocabulary // 32)), device=device).int(),
    )


def make_tree(batch, nodes, vocabulary, device="cpu"):
    parents = torch.zeros(batch, nodes, dtype=torch.int64)
    reach = torch.eye(nodes, dtype=torch.bool).repeat(batch, 1, 1)
    for node in range(1, nodes):
        for row in range(batch):
            parents[row, node] = parent = int(torch.randint(node, ()))
            reach[row, node] |= reach[row, parent]
    padded = torch.nn.functional.pad(reach.long(), (0, -nodes % 64)).view(batch, nodes, -1, 64)
    words = (padded << torch.arange(64)).sum(-1)
    return {
        "draft_tokens": torch.randint(vocabulary, (batch, nodes), device=device),
        "ancestors": words.to(device),
    }


def make(batch=1, nodes=3, vocabulary=300, dtype=torch.float32, device="cpu", spread=3.0):
    logits = (torch.randn(batch, nodes, vocabulary, device=device) * spread).to(dtype)
    positions = torch.randint(2**34, (batch, nodes), device=device)
    return logits, positions


def assert_same(logits, positions, state, **tree):
    """Exact; on a GPU, whose logarithm is not the CPU's, the two best may change places when they are 1e-5 apart."""
    got = sample_tokens(logits, positions, state, **tree, backend="triton")
    expected = reference_sampling.sample_tokens(logits, positions, state, **tree)
    assert got.dtype == torch.int64
    if not logits.is_cuda:
        assert torch.equal(got, expected)
        return
    scores = reference_sampling.filter_logits(logits, state, *tree.values())
    noise = reference_sampling.gumbel_noise(state.seed, positions, logits.shape[-1])
    scores = torch.where(state.temperature[:, None, None] > 0, scores + noise, scores)
    gap = scores.gather(-1, expected[..., None]) - scores.gather(-1, got[..., None])
    assert torch.where((got == expected)[..., None], 0, gap).abs().max() <= 1e-5


@pytest.mark.parametrize(("counter", "key", "expected"), VECTORS, ids=["zero", "ones", "pi"])
def test_philox_gives_the_published_words(counter, key, expected):
    words = reference_sampling.philox(*(tuple(torch.tensor(word) for word in part) for part in (counter, key)))
    assert tuple(int(word) for word in words) == expected


@jit
def noise_kernel(seed, positions, block_u, token_u, block_g, COUNT: tl.constexpr):
    position = tl.load(positions)
    token = 64 + tl.arange(0, COUNT)
    u = uniforms(tl.load(seed), position, 64, COUNT)
    tl.store(block_u + tl.arange(0, COUNT), u)
    tl.store(token_u + tl.arange(0, COUNT), uniforms_of(tl.load(seed), position, token))
    tl.store(block_g + tl.arange(0, COUNT), gumbel(u))


@pytest.mark.parametrize("seed", [0, 1, 2**40 + 7, 2**63 - 1])
@pytest.mark.parametrize("position", [0, 5, 2**31 + 3, 2**40 + 1])
def test_uniforms_are_equal_to_the_last_bit(seed, position, device):
    seeds, positions = (torch.tensor([value], device=device) for value in (seed, position))
    out = [torch.empty(1024, device=device) for _ in range(3)]
    noise_kernel[(1,)](seeds, positions, *out, COUNT=1024)
    expected = reference_sampling.uniforms(seeds, positions[None], 64 + 1024)[0, 0, 64:]
    assert torch.equal(out[0], expected)
    assert torch.equal(out[1], expected)
    noise = reference_sampling.gumbel_noise(seeds, positions[None], 64 + 1024)[0, 0, 64:]
    torch.testing.assert_close(out[2], noise, rtol=1e-5, atol=1e-5)


def test_uniforms_lie_strictly_between_0_and_1(monkeypatch):
    for word, expected in ((0, 2.0**-33), (2**32 - 1, 1 - 2.0**-24)):
        monkeypatch.setattr(reference_sampling, "philox", lambda c, k, word=word: [torch.full((1, 1, 1), word)] * 4)
        u = reference_sampling.uniforms(torch.tensor([1]), torch.tensor([[1]]), 4)
        assert u.unique().tolist() == [expected]
        noise = reference_sampling.gumbel_noise(torch.tensor([1]), torch.tensor([[1]]), 4)
        assert noise.isfinite().all()


def test_noise_is_fine_grained_where_the_winners_come_from(device):
    """1 - u would have a step of 2**-24 near 1: a few of a million tokens would tie, and the first of them win."""
    u = reference_sampling.uniforms(torch.tensor([3]), torch.tensor([[9]]), 2**20)
    small = u[u < 2**-8]
    assert len(small) > 3500
    assert (small * 2**24 % 1 != 0).float().mean() > 0.9


def test_neighbours_in_every_coordinate_differ():
    u = reference_sampling.uniforms(torch.tensor([4, 5]), torch.tensor([[6, 7, 6 + 2**32]] * 2), 1000)
    assert len(u.flatten().unique()) > u.numel() - 10


SHAPES = {
    "one row": {"nodes": 1, "vocabulary": 1000},
    "tiny": {"batch": 2, "nodes": 2, "vocabulary": 7},
    "one word": {"nodes": 4, "vocabulary": 33},
    "odd": {"batch": 2, "nodes": 5, "vocabulary": 1003},
    "several blocks": {"nodes": 3, "vocabulary": 5003},
}
SETTINGS = {
    "greedy": {"temperature": 0.0},
    "greedy, filters": {"temperature": 0.0, "top_k": 2, "top_p": 0.1, "min_p": 0.5},
    "temperature 1": {},
    "cold": {"temperature": 1e-4},
    "hot": {"temperature": 1e4},
    "top_k": {"top_k": 5, "temperature": 1.5},
    "top_k 1": {"top_k": 1},
    "top_k over the segments": {"top_k": 60, "temperature": 3.0},
    "top_k over V": {"top_k": 100000},
    "top_p": {"top_p": 0.9, "temperature": 0.7},
    "top_p small": {"top_p": 1e-6},
    "top_p of the flat": {"top_p": 0.03, "temperature": 50.0},
    "top_p large": {"top_p": 0.999, "temperature": 2.0},
    "min_p": {"min_p": 0.05},
    "min_p 1": {"min_p": 1.0},
    "penalty": {"repetition_penalty": 1.7},
    "penalty greedy": {"repetition_penalty": 3.0, "temperature": 0.0},
    "all": {"top_k": 40, "top_p": 0.8, "min_p": 0.02, "repetition_penalty": 1.3, "temperature": 1.2},
    "hot filters": {"top_p": 0.5, "temperature": 1e4},
    "cold filters": {"top_p": 0.5, "top_k": 9, "temperature": 1e-4},
}


@pytest.mark.parametrize("setting", SETTINGS.values(), ids=SETTINGS.keys())
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, setting, device):
    logits, positions = make(**shape, device=device)
    batch, nodes, vocabulary = logits.shape
    state = make_state(batch, vocabulary, device, **setting)
    assert_same(logits, positions, state, **make_tree(batch, nodes, vocabulary, device))


@pytest.mark.parametrize("nodes", [64, 70])
def test_a_whole_tree(nodes, device):
    logits, positions = make(1, nodes, 129, device=device)
    assert_same(logits, positions, make_state(1, 129, device, **SETTINGS["all"]), **make_tree(1, nodes, 129, device))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", ["greedy", "temperature 1", "top_k", "top_p", "all"])
def test_few_bits_and_many_ties(name, dtype, device):
    logits, positions = make(2, 6, 700, dtype, device, spread=1.0)
    logits = (logits * 2).round() / 2  # about twenty values
    assert_same(logits, positions, make_state(2, 700, device, **SETTINGS[name]))


@pytest.mark.parametrize("name", [name for name in SETTINGS if name != "top_k over V"])
def test_masked_tokens_and_masked_blocks(name, device):
    logits, positions = make(1, 3, 2600, device=device)
    logits[0, 0, :2560] = -INF  # a whole block, whole segments
    logits[0, 1, 1:] = -INF
    logits[0, 2, ::2] = -INF
    state = make_state(1, 2600, device, **SETTINGS[name])
    assert_same(logits, positions, state)
    tokens = sample_tokens(logits, positions, state, backend="triton")
    assert logits.gather(-1, tokens[..., None]).isfinite().all()


def test_random_settings(rng, device):
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for _ in range(16 if interpreted else 200):
        batch, nodes, vocabulary = rng.randint(1, 3), rng.randint(1, 6), rng.randint(3, 900)
        if not interpreted:  # every shape is compiled, with a tree and without: few of them
            nodes, vocabulary = rng.choice([1, 6]), rng.choice([7, 300, 899])
        logits, positions = make(batch, nodes, vocabulary, device=device, spread=rng.choice([0.0, 0.3, 3.0, 20.0]))
        if rng.random() < 0.5:
            logits = logits.bfloat16()
        bias = torch.randn(batch, vocabulary, device=device) * 5
        bias[:, ::3] = 0
        bias[:, 1::7] = -INF
        state = make_state(
            batch, vocabulary, device,
            seed=[rng.getrandbits(63) for _ in range(batch)],
            temperature=[rng.choice([0.0, 0.1, 0.7, 1.0, 2.0]) for _ in range(batch)],
            top_k=[rng.choice([0, 1, 7, 50, 5000]) for _ in range(batch)],
            top_p=[rng.choice([1.0, 0.3, 0.9, 0.999]) for _ in range(batch)],
            min_p=[rng.choice([0.0, 0.01, 0.3]) for _ in range(batch)],
            repetition_penalty=[rng.choice([1.0, 0.8, 1.4]) for _ in range(batch)],
            **({"logit_bias": bias} if rng.random() < 0.5 else {}),
        )  # fmt: skip
        tree = make_tree(batch, nodes, vocabulary, device) if rng.random() < 0.5 else {}
        assert_same(logits, positions, state, **tree)


@pytest.mark.parametrize("name", ["top_k", "top_k over the segments", "top_p", "top_p large", "min_p", "all"])
def test_more_candidates_than_the_list_holds(name, device, monkeypatch):
    monkeypatch.setattr(op, "ROOM", 4)
    logits, positions = make(1, 4, 5003, device=device, spread=1.0)
    assert_same(logits, positions, make_state(1, 5003, device, **SETTINGS[name]), **make_tree(1, 4, 5003, device))


@pytest.mark.parametrize("programs", [1, 6, 8])
@pytest.mark.parametrize("name", ["top_k", "top_p"])
def test_programs_that_list_several_blocks(name, programs, device, monkeypatch):
    """Five blocks a row, two rows: a program lists all five, or two of them (of three programs one lists the last), or
    two and one; the same bits every time. The tokens to keep lie in the last block."""
    monkeypatch.setattr(op, "PROGRAMS", programs)
    logits, positions = make(nodes=2, vocabulary=9000, device=device)
    logits[..., -300:] += 20
    assert_same(logits, positions, make_state(1, 9000, device, **SETTINGS[name]))


def test_mass_spread_over_equal_tokens(device):
    """Here the bound that the segments give for top-p is tight: half of the mass is in tokens of 2**-7 each."""
    logits, positions = make(1, 6, 4000, device=device, spread=0.0)
    logits[..., 1234] = 4.86
    assert_same(logits, positions, make_state(1, 4000, device, top_p=0.5))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_greedy_ties_go_to_the_lower_token(backend, device):
    logits = torch.full((1, 1, 4100), -1.0, device=device)
    logits[..., [3000, 17, 4099, 700]] = 2.0
    tokens = sample_tokens(logits, torch.zeros(1, 1, dtype=torch.int64, device=device),
                           make_state(1, 4100, device, temperature=0.0), backend=backend)  # fmt: skip
    assert tokens.tolist() == [[17]]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_ties_at_the_border_of_top_p_keep_the_lower_tokens(backend, device):
    """Eight equal tokens, half of the mass: the first four; top-k of equal tokens keeps them all."""
    logits = torch.full((1, 40, 100), -INF, device=device)
    logits[..., 40:48] = 1.5
    positions = torch.arange(40, device=device)[None]
    half = sample_tokens(logits, positions, make_state(1, 100, device, top_p=0.5), backend=backend)
    assert half.unique().tolist() == [40, 41, 42, 43]
    ranked = sample_tokens(logits, positions, make_state(1, 100, device, top_k=2), backend=backend)
    assert ranked.unique().tolist() == list(range(40, 48))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_row_does_not_depend_on_its_neighbours(backend, device):
    logits, positions = make(2, 5, 2500, device=device)
    state = make_state(2, 2500, device, temperature=[0.8, 1.1], top_p=[1.0, 0.9])
    together = sample_tokens(logits, positions, state, backend=backend)
    for row in range(2):
        for node in range(5):
            one = SamplingState(*(tensor[row : row + 1] for tensor in state))
            alone = sample_tokens(logits[row, node][None, None], positions[row, node][None, None], one, backend=backend)
            assert alone.item() == together[row, node]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_strided_inputs(backend, device):
    logits, positions = make(2, 3, 150, device=device)
    wide = torch.zeros(2, 3, 400, device=device)
    wide[:, :, 7:157] = logits
    state = make_state(2, 150, device, top_p=0.9)
    turned = logits.transpose(1, 2).contiguous().transpose(1, 2)
    expected = sample_tokens(logits, positions, state, backend=backend)
    for same in (wide[:, :, 7:157], turned):
        assert torch.equal(sample_tokens(same, positions, state, backend=backend), expected)


def test_a_planted_error_is_caught(device, monkeypatch):
    """The comparison notices another temperature, another seed, a missing filter and a history that is not counted."""
    logits, positions = make(1, 24, 300, device=device)
    state, tree = make_state(1, 300, device, top_k=10, repetition_penalty=3.0), make_tree(1, 24, 300, device)
    tree["draft_tokens"] = logits.argmax(-1)  # a path that matters
    state = state._replace(seen=state.seen & 0x11111111)
    got = sample_tokens(logits, positions, state, **tree, backend="triton")
    monkeypatch.setattr(op, "_launch", lambda *args: got)
    assert_same(logits, positions, state, **tree)
    for wrong in (
        state._replace(temperature=state.temperature * 1.5),
        state._replace(seed=state.seed + 1),
        state._replace(top_k=state.top_k * 0),
        state._replace(seen=state.seen * 0),
    ):
        with pytest.raises(AssertionError):
            assert_same(logits, positions, wrong, **tree)
    with pytest.raises(AssertionError):
        assert_same(logits, positions, state)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_marks_count_once_and_only_as_far_as_they_count(backend, device):
    seen = torch.zeros(3, 4, dtype=torch.int32, device=device)
    tokens = torch.tensor([[31, 31, 64, 7], [0, 1, 127, 127], [5, 5, 5, -1]], device=device)
    count = torch.tensor([3, 4, 0], device=device)
    for _ in range(2):  # what is marked stays marked
        mark_seen(seen, tokens, count, backend=backend)
        bits = ((seen[..., None] >> torch.arange(32, device=device)) & 1).flatten(1)
        assert [row.nonzero().flatten().tolist() for row in bits] == [[31, 64], [0, 1, 127], []]
    mark_seen(seen, tokens[:, :2] + 1, torch.full_like(count, 2), backend=backend)
    bits = ((seen[..., None] >> torch.arange(32, device=device)) & 1).flatten(1)
    assert [row.nonzero().flatten().tolist() for row in bits] == [[31, 32, 64], [0, 1, 2, 127], [6]]


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_a_long_prompt_is_marked(backend, device):
    tokens = torch.randint(0, 1000, (2, 700), device=device)
    seen = torch.zeros(2, 32, dtype=torch.int32, device=device)
    mark_seen(seen, tokens, torch.tensor([700, 300], device=device), backend=backend)
    bits = ((seen[..., None] >> torch.arange(32, device=device)) & 1).flatten(1)
    assert bits[0].nonzero().flatten().tolist() == sorted(set(tokens[0].tolist()))
    assert bits[1].nonzero().flatten().tolist() == sorted(set(tokens[1, :300].tolist()))


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_sampling, "sample_tokens", lambda *args, **options: "reference")
    assert sample_tokens(*make(), make_state(1, 300)) == "reference"


def test_the_operators_are_registered_correctly(device):
    logits, positions = make(device=device)
    state = make_state(1, 300, device, top_p=0.9)
    torch.library.opcheck(torch.ops.radar_kernels.sample_tokens.default, (logits, positions, *state, None, None))
    count = torch.tensor([2], device=device)
    torch.library.opcheck(torch.ops.radar_kernels.mark_seen.default, (state.seen, positions % 300, count))


BAD = {
    "logits must be": {"logits": torch.zeros(3, 300)},
    "float16, bfloat16 or float32": {"logits": torch.zeros(1, 3, 300, dtype=torch.float64)},
    r"positions must be torch.int64 \[1, 3\]": {"positions": torch.zeros(1, 3)},
    "give both or none": {"draft_tokens": torch.zeros(1, 3, dtype=torch.int64)},
    r"ancestors must be torch.int64 \[1, 3, 1\]": {
        "draft_tokens": torch.zeros(1, 3, dtype=torch.int64), "ancestors": torch.zeros(1, 3, 2, dtype=torch.int64)
    },
    r"top_k must be torch.int32 \[1\]": {"state": make_state(1, 300)._replace(top_k=torch.zeros(1))},
    r"seen must be torch.int32 \[1, 10\]": {"state": make_state(1, 300)._replace(seen=torch.zeros(1, 9).int())},
}  # fmt: skip


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    logits, positions = make()
    arguments = {"logits": logits, "positions": positions, "state": make_state(1, 300), **change}
    with pytest.raises(ValueError, match=f"sample_tokens: .*{message}"):
        sample_tokens(**arguments)


def test_marking_errors_say_what_was_expected():
    seen, tokens, count = torch.zeros(1, 4).int(), torch.zeros(1, 2).long(), torch.zeros(1).long()
    for message, arguments in {
        "tokens must be int64": (seen, tokens.int(), count),
        r"seen must be contiguous int32 \[1, W\]": (seen.long(), tokens, count),
        r"count must be int64 \[1\]": (seen, tokens, count.int()),
    }.items():
        with pytest.raises(ValueError, match=f"mark_seen: {message}"):
            mark_seen(*arguments)
