"""sample_tokens: the kernel against the reference, token for token."""

import importlib
import os

import pytest
import torch
from sampling_cases import INF, SETTINGS, assert_same, make, make_state, make_tree

from radar_kernels import SamplingState, reference_sampling, sample_tokens

op = importlib.import_module("radar_kernels.sample_tokens")
NAN = float("nan")
SHAPES = {
    "one row": {"nodes": 1, "vocabulary": 1000},
    "tiny": {"batch": 2, "nodes": 2, "vocabulary": 7},
    "one word": {"nodes": 4, "vocabulary": 33},
    "odd": {"batch": 2, "nodes": 3, "vocabulary": 1003},
    "several blocks": {"nodes": 3, "vocabulary": 5003},
}
EACH_STEP = ("penalty greedy", "temperature 1", "top_k", "top_p", "min_p", "all")  # each of the kernels' steps once


@pytest.mark.parametrize(
    ("shape", "setting"),
    [(shape, setting) for shape in SHAPES for setting in (SETTINGS if shape == "odd" else EACH_STEP)],
)
def test_kernel_equals_reference(shape, setting, device):
    logits, positions = make(**SHAPES[shape], device=device)
    batch, nodes, vocabulary = logits.shape
    state = make_state(batch, vocabulary, device, **SETTINGS[setting])
    assert_same(logits, positions, state, **make_tree(batch, nodes, vocabulary, device))


@pytest.mark.parametrize("setting", ["penalty greedy", "top_k", "top_p"])
def test_logits_of_some_nodes(setting, device):
    """What a node says does not depend on where its logits stand; a node without any says nothing."""
    logits, positions = make(3, 4, 300, device=device)
    state = make_state(3, 300, device, seed=torch.arange(3), **SETTINGS[setting])
    tree = make_tree(3, 4, 300, device)
    whole = sample_tokens(logits, positions, state, **tree, backend="triton")
    nodes = torch.tensor([0, 1, 3, 4, 11, 9, -1, -1], device=device)
    packed = logits.flatten(0, 1)[nodes][:, None]
    packed[-2:] = NAN  # of nothing
    for backend in ("triton", "torch"):
        got = sample_tokens(packed, positions, state, **tree, nodes=nodes, backend=backend).flatten()
        assert torch.equal(got[nodes[:-2]], whole.flatten()[nodes[:-2]])
        got[nodes[:-2]] = -1
        assert (got == -1).all()
    with pytest.raises(ValueError, match=r"with nodes, int64 \[M\], logits must be \[M, 1, V\]"):
        sample_tokens(logits, positions, state, **tree, nodes=nodes)


@pytest.mark.slow
def test_a_whole_tree(device):
    nodes = 66  # two words of ancestors
    logits, positions = make(1, nodes, 33, device=device)
    assert_same(logits, positions, make_state(1, 33, device, **SETTINGS["all"]), **make_tree(1, nodes, 33, device))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("greedy", torch.float16), ("temperature 1", torch.bfloat16), ("top_k", torch.float16),
        ("top_p", torch.bfloat16), ("all", torch.bfloat16),
    ],
)  # fmt: skip
def test_few_bits_and_many_ties(name, dtype, device):
    logits, positions = make(2, 3, 700, dtype, device, spread=1.0)
    logits = (logits * 2).round() / 2  # about twenty values
    assert_same(logits, positions, make_state(2, 700, device, **SETTINGS[name]))


@pytest.mark.parametrize("name", [*EACH_STEP[:-1], "greedy", "top_k over the segments"])
def test_masked_tokens_and_masked_blocks(name, device):
    logits, positions = make(1, 3, 2600, device=device)
    logits[0, 0, :2560] = -INF  # a whole block, whole segments
    logits[0, 1, 1:] = -INF
    logits[0, 2, ::2] = -INF
    state = make_state(1, 2600, device, **SETTINGS[name])
    assert_same(logits, positions, state)
    tokens = sample_tokens(logits, positions, state, backend="triton")
    assert logits.gather(-1, tokens[..., None]).isfinite().all()


@pytest.mark.slow
def test_random_settings(rng, device):
    interpreted = os.environ.get("TRITON_INTERPRET") == "1"
    for _ in range(8 if interpreted else 200):
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


@pytest.mark.slow
@pytest.mark.parametrize("name", ["top_k", "top_k over the segments", "top_p", "top_p large", "min_p", "all"])
def test_more_candidates_than_the_list_holds(name, device, monkeypatch):
    monkeypatch.setattr(op, "ROOM", 4)
    logits, positions = make(1, 2, 5003, device=device, spread=1.0)
    assert_same(logits, positions, make_state(1, 5003, device, **SETTINGS[name]), **make_tree(1, 2, 5003, device))


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
    logits = torch.full((1, 24, 100), -INF, device=device)
    logits[..., 40:48] = 1.5
    positions = torch.arange(24, device=device)[None]
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


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference_sampling, "sample_tokens", lambda *args, **options: "reference")
    assert sample_tokens(*make(), make_state(1, 300)) == "reference"


def test_the_operator_is_registered_correctly(device):
    logits, positions = make(device=device)
    state = make_state(1, 300, device, top_p=0.9)
    torch.library.opcheck(torch.ops.radar_kernels.sample_tokens.default, (logits, positions, *state, None, None, None))


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
