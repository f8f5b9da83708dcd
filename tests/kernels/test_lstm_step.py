"""lstm_step: the reference against torch.nn.LSTM and torch.nn.Sequential, the kernel against the reference."""

import pytest
import torch
from tolerances import assert_close
from torch import nn

from radar_kernels import LstmStep, PolicyWeights, lstm_step, reference

LOADS_ARE_WIDENED = True
SHAPES = {
    "RADAR's policy": {"hidden": 128},
    "hidden 64, batch 3": {"hidden": 64, "batch": 3},
    "hidden 256": {"hidden": 256, "middle": 32},
    "odd sizes": {"hidden": 100, "middle": 50, "inputs": 7, "batch": 2},
    "one input": {"hidden": 64, "middle": 16, "inputs": 1},
    "64 inputs": {"hidden": 128, "middle": 300, "inputs": 64},
}


class Policy(nn.Module):
    def __init__(self, *, inputs=10, hidden=128, middle=128, batch=1, device="cpu"):
        super().__init__()
        self.lstm = nn.LSTM(inputs, hidden, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(hidden + inputs, middle), nn.ReLU(), nn.Dropout(0.0), nn.Linear(middle, 2))
        self.scores = torch.randn(batch, inputs, device=device)
        self.state = torch.randn(2, batch, hidden, device=device)
        self.to(device).requires_grad_(False)

    def weights(self, dtype=torch.float32) -> PolicyWeights:
        lstm = (self.lstm.weight_ih_l0, self.lstm.weight_hh_l0, self.lstm.bias_ih_l0, self.lstm.bias_hh_l0)
        mlp = (self.mlp[0].weight, self.mlp[0].bias, self.mlp[3].weight, self.mlp[3].bias)
        return PolicyWeights(*(w.to(dtype) for w in (*lstm, *mlp)))

    def inputs(self, dtype=torch.float32):
        return self.scores, *self.state, self.weights(dtype)


def assert_same(got: LstmStep, expected: LstmStep):
    for name in ("hidden", "cell", "logits"):
        assert getattr(got, name).dtype == torch.float32
        assert_close(getattr(got, name), getattr(expected, name), "lstm_step", torch.float32)
    assert got.stop.dtype == torch.bool
    assert torch.equal(got.stop, expected.stop)


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_reference_equals_torch_modules(shape, device):
    policy = Policy(**shape, device=device)
    out = reference.lstm_step(*policy.inputs())
    policy = policy.double()
    scores, (hidden, cell) = policy.scores.double(), policy.state.double()
    features, (new_hidden, new_cell) = policy.lstm(scores[:, None], (hidden[None], cell[None]))
    logits = policy.mlp(torch.cat((features[:, 0], scores), -1))
    assert_same(out, LstmStep(new_hidden[0], new_cell[0], logits, logits.softmax(-1)[:, 0] > 0.5))


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES.keys())
def test_kernel_equals_reference(shape, kernel_dtype, device):
    inputs = Policy(**shape, device=device).inputs(kernel_dtype)
    assert_same(lstm_step(*inputs, backend="triton"), reference.lstm_step(*inputs))


def test_bfloat16_weights(device):
    """Loads are widened before any arithmetic, so bfloat16 is right in the interpreter too."""
    inputs = Policy(hidden=64, device=device).inputs(torch.bfloat16)
    assert_same(lstm_step(*inputs, backend="triton"), reference.lstm_step(*inputs))


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_the_state_carries_over_levels(backend, device):
    policy = Policy(hidden=64, batch=2, device=device)
    levels = torch.randn(2, 5, 10, device=device)
    hidden = cell = torch.zeros(2, 64, device=device)
    for level in range(5):
        step = lstm_step(levels[:, level], hidden, cell, policy.weights(), backend=backend)
        hidden, cell = step.hidden, step.cell
    expected, _ = policy.double().lstm(levels.double())  # float64: cuDNN may use TF32 for float32
    assert_close(hidden, expected[:, -1], "lstm_step", torch.float32)


@pytest.mark.parametrize(
    "shape", [{"hidden": 64, "batch": 3}, {"hidden": 40, "middle": 600}], ids=["batch 3", "hidden state in chunks"]
)
@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_update_overwrites_the_state(shape, backend, device):
    """Level by level the state in place is the one that the functional form returns."""
    scores, hidden, cell, weights = Policy(**shape, device=device).inputs()
    twin = hidden.clone(), cell.clone()
    for level in range(2):
        expected = lstm_step(scores + level, *twin, weights, backend=backend)
        got = lstm_step(scores + level, hidden, cell, weights, update=True, backend=backend)
        assert got.hidden is hidden
        assert got.cell is cell
        assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
        twin = expected.hidden, expected.cell


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_scores_below_the_floor_count_as_it(backend, device):
    scores, hidden, cell, weights = Policy(hidden=64, batch=2, device=device).inputs()
    scores[0, 4:] = -torch.inf
    scores[1, 9] = -7.5
    step = lstm_step(scores, hidden, cell, weights, floor=-7.0, backend=backend)
    assert_same(step, lstm_step(scores.clamp(min=-7.0), hidden, cell, weights, backend=backend))
    assert not lstm_step(scores, hidden, cell, weights, backend=backend).logits[0].isfinite().all()
    scores[1, 9] = torch.nan
    assert lstm_step(scores, hidden, cell, weights, floor=-7.0, backend=backend).logits[1].isnan().all()


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_thresholds(backend, device):
    policy = Policy(hidden=64, batch=4, device=device)
    probability = lstm_step(*policy.inputs(), backend=backend).logits.softmax(-1)[:, 0]
    around = torch.tensor([-0.01, 0.01, -0.01, 0.01], device=device)
    step = lstm_step(*policy.inputs(), threshold=probability + around, backend=backend)
    assert step.stop.tolist() == [True, False, True, False]
    assert torch.equal(lstm_step(*policy.inputs(), backend=backend).stop, probability > 0.5)


@pytest.mark.parametrize("backend", ["triton", "torch"])
def test_action_0_is_stop(backend, device):
    scores, hidden, cell, weights = Policy(hidden=64, device=device).inputs()
    for bias, stop in (([9.0, -9.0], True), ([-9.0, 9.0], False), ([99.0, -99.0], True), ([-99.0, 99.0], False)):
        changed = weights._replace(mlp3_bias=torch.tensor(bias, device=device))
        assert lstm_step(scores, hidden, cell, changed, backend=backend).stop.tolist() == [stop]


def test_inputs_are_not_modified_and_may_be_views(device):
    policy = Policy(hidden=64, batch=2, device=device)
    scores, hidden, cell, weights = policy.inputs()
    views = [torch.stack((x, x * 7), -1)[..., 0] for x in (scores, hidden, cell)]
    before = [v.clone() for v in views]
    assert_same(lstm_step(*views, weights, backend="triton"), reference.lstm_step(scores, hidden, cell, weights))
    assert all(torch.equal(a, b) for a, b in zip(views, before, strict=True))


@pytest.mark.parametrize("field", PolicyWeights._fields)
def test_every_weight_matters(field, device):
    """A planted error of one percent in any of the weights is caught by the comparison."""
    scores, hidden, cell, weights = Policy(hidden=64, middle=16, device=device).inputs()
    wrong = weights._replace(**{field: getattr(weights, field) * 1.01})
    with pytest.raises(AssertionError):
        assert_same(
            lstm_step(scores, hidden, cell, wrong, backend="triton"), reference.lstm_step(scores, hidden, cell, weights)
        )


def test_cpu_runs_the_reference(monkeypatch):
    monkeypatch.setattr(reference, "lstm_step", lambda *args, **options: "reference")
    assert lstm_step(*Policy().inputs()) == "reference"


def test_the_operator_is_registered_correctly(device):
    scores, hidden, cell, weights = Policy(hidden=64, device=device).inputs()
    arguments = scores, hidden, cell, list(weights), None
    torch.library.opcheck(torch.ops.radar_kernels.lstm_step.default, (*arguments, None))
    torch.library.opcheck(torch.ops.radar_kernels.lstm_step_.default, (*arguments, -100.0))


BAD = {
    "scores must be": {"scores": torch.zeros(10)},
    "hidden must be": {"hidden": torch.zeros(2, 64), "cell": torch.zeros(2, 64)},
    "cell must be": {"cell": torch.zeros(1, 65)},
    "weight_ih must be": {"scores": torch.zeros(1, 9)},
    "threshold must be": {"threshold": torch.zeros(2)},
    "hidden must be float32 and contiguous": {"hidden": torch.zeros(1, 64).half(), "update": True},
    "cell must be float32 and contiguous": {"cell": torch.zeros(1, 128)[:, ::2], "update": True},
}


@pytest.mark.parametrize(("message", "change"), BAD.items(), ids=BAD.keys())
def test_errors_say_what_was_expected(message, change):
    arguments = dict(zip(("scores", "hidden", "cell", "weights"), Policy(hidden=64).inputs(), strict=True))
    with pytest.raises(ValueError, match=f"lstm_step: .*{message}"):
        lstm_step(**{**arguments, **change})
