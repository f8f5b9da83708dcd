"""One step of the stop policy against torch.nn.LSTM (cuDNN on a GPU) and torch.nn.Sequential.

Weights rotate, as the draft model's own weights pass through the cache between two steps."""

import pytest
import torch
from tolerances import assert_close
from torch import nn

from bench.conftest import IMPLEMENTATIONS, ON_GPU, implementation_of
from radar_kernels import LstmStep, PolicyWeights, lstm_step, reference

INPUTS, MIDDLE = 10, 128
CASES = [(1, 64), (1, 128), (1, 512), (16, 128)] if ON_GPU else [(1, 128)]
COPIES = 300 if ON_GPU else 2


class Policy(nn.Module):
    def __init__(self, hidden: int):
        super().__init__()
        self.lstm = nn.LSTM(INPUTS, hidden, batch_first=True)
        self.mlp = nn.Sequential(nn.Linear(hidden + INPUTS, MIDDLE), nn.ReLU(), nn.Linear(MIDDLE, 2))
        self.requires_grad_(False)

    def forward(self, scores: torch.Tensor, hidden: torch.Tensor, cell: torch.Tensor) -> LstmStep:
        features, (new_hidden, new_cell) = self.lstm(scores[:, None], (hidden[None], cell[None]))
        logits = self.mlp(torch.cat((features[:, 0], scores), -1))
        return LstmStep(new_hidden[0], new_cell[0], logits, logits.softmax(-1)[:, 0] > 0.5)

    def weights(self) -> PolicyWeights:
        return PolicyWeights(*self.lstm.parameters(), *self.mlp.parameters())


def module_step(policy: Policy, *state: torch.Tensor) -> LstmStep:
    return policy(*state)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(("batch", "hidden"), CASES, ids=[f"{b}x{h}" for b, h in CASES])
def test_lstm_step(batch, hidden, implementation, device, bench_kernel):
    policies = [Policy(hidden).to(device) for _ in range(COPIES)]
    state = torch.randn(batch, INPUTS, device=device), *torch.randn(2, batch, hidden, device=device)
    weights = [policy.weights() for policy in policies]
    if implementation == "torch":
        call, inputs = module_step, [(policy, *state) for policy in policies]
    else:  # the formulas are compiled: torch.compile leaves nn.LSTM to cuDNN
        call = implementation_of(implementation, lstm_step, reference.lstm_step)
        inputs = [(*state, w) for w in weights]
    expected = reference.lstm_step(*state, weights[0])
    tolerance = "lstm_step cuDNN" if implementation == "torch" else "lstm_step"
    for name in ("hidden", "cell", "logits"):
        got = getattr(call(*inputs[0]), name)
        assert_close(got, getattr(expected, name), tolerance, torch.float32)
    bench_kernel(call, inputs, bytes_moved=sum(w.nbytes for w in weights[0]))
