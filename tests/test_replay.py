"""Replay: what a policy would have done with recorded rounds, by hand and beside the network itself."""

import pytest
import torch
from cliff_rounds import CALLS, WIDTH, make_rounds
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.policy.base import FixedDepth, RoundSignals, Threshold
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork
from radar.replay import replay as rounds_by_replay
from radar.replay.ends import Ends
from radar.replay.replay import ends_of, replay_ends
from radar.replay.rounds import RoundDataset, RoundsHeader
from radar.tools.costs import CostTable


def test_replay_by_hand() -> None:
    data = make_rounds(3)
    data.accept_lengths[:] = torch.tensor([[0] * 8, [1, 2, 2, 2, 2, 2, 2, 2], [1, 2, 3, 4, 5, 6, 7, 8]])
    costs = CostTable.constant(call=1.0, decision=0.5, rest=10.0)
    result = replay_ends(Ends(torch.tensor([1, 3, 8])), data, costs)
    assert result.draft_calls == 4
    assert result.mean_acceptance_length == pytest.approx((1 + 3 + 9) / 3)
    assert result.tokens_per_time == pytest.approx(
        13 / (11.5 + 14.5 + 21.5)
    )  # the last call is followed by no decision
    assert result.stop_histogram == (1, 0, 1, 0, 0, 0, 0, 1)


def test_replay_runs_any_policy(monkeypatch: pytest.MonkeyPatch) -> None:
    data = make_rounds(50)
    assert ends_of(FixedDepth(3), data).calls.tolist() == [3] * 50
    depth = data.accept_lengths[:, -1]
    assert torch.equal(ends_of(Threshold(0.3), data).calls, (depth + 1).clamp(max=CALLS))
    torch.manual_seed(1)
    network = PolicyNetwork(WIDTH, 16)
    nn.init.normal_(network.mlp[3].weight, std=3.0)
    stops = ends_of(network, data).calls
    assert network.training
    assert stops.unique().numel() > 1
    assert torch.equal(stops, ends_of(RadarPolicy(network.eval()), data).calls)
    monkeypatch.setattr(rounds_by_replay, "BATCH", 7)
    assert torch.equal(ends_of(network, data).calls, stops)
    assert ends_of(network, data.truncate(1)).calls.tolist() == [1] * 50


class Spy:
    """Stops after as many calls as the signal says, and keeps what it was shown."""

    def __init__(self) -> None:
        self.seen: list[tuple[list[int], list[int]]] = []

    def attach(self, signals: RoundSignals) -> None:
        self.signals = signals

    def bind(self, batch_size: int, tree: TreeConfig, device: torch.device) -> None:
        self.count = torch.zeros(batch_size, dtype=torch.int64)

    def reset(self) -> None:
        self.count.zero_()
        self.seen.append((self.signals.accept_length.tolist(), self.signals.context_length.tolist()))

    def stop(self, scores: Tensor) -> Tensor:
        self.count += 1
        return self.count >= self.signals.accept_length + 2


def test_signals_are_those_of_the_round_before() -> None:
    accept = torch.tensor([[1, 2, 3], [1, 1, 1], [0, 0, 0], [1, 2, 2], [0, 0, 0]])
    header = RoundsHeader(TreeConfig(tree_top_k=1, max_calls=3))
    prompt, position = torch.tensor([7, 4, 7, 7, 4]), torch.tensor([10, 20, 11, 12, 22])
    data = RoundDataset(torch.zeros(5, 3, 1), accept, prompt, position, header)
    spy = Spy()
    stops = ends_of(spy, data).calls
    # prompt 4: rounds 1 and 4; prompt 7: rounds 0, 2, 3. A first round stops after call 1 (-1 + 2).
    assert stops.tolist() == [1, 1, 3, 2, 3]
    assert [seen[0] for seen in spy.seen] == [[-1, -1], [1, 1], [0, 0]]
    assert [seen[1] for seen in spy.seen] == [[20, 10], [22, 11], [22, 12]]
