"""Training a choice of nodes: the loss against all ends one by one, and a rule that is planted in the scores."""

import itertools
import json
from dataclasses import replace

import pytest
import torch
from cliff_rounds import CALLS, make_rounds

from radar.errors import UsageError
from radar.policy.network_files import load_policy
from radar.replay.evaluate import oracle_ends
from radar.replay.replay import replay, replay_ends, tune_fixed
from radar.replay.rounds import RoundDataset
from radar.tools.costs import CostTable
from radar.train import policy as training
from radar.train.contenders import tune_nodes_by_mass, tuned_contenders
from radar.train.objectives import choice_entropy, exact_loss, joint_loss, ratio_returns
from radar.train.options import PolicyTraining
from radar.train.policy import train_policy

pytestmark = pytest.mark.filterwarnings("ignore:train_policy. .*too few:UserWarning")

NODES = (4, 16, 60)
FAST = {
    "progress": False, "epochs": 30, "batch_size": 64, "learning_rate": 0.01, "hidden_size": 16, "dropout": 0.0,
    "entropy": 0.05,
}  # fmt: skip


def table(verify=(1.0, 2.0, 2.5), choice=0.0, decision=0.0):
    return CostTable(
        draft_call_seconds=(0.3,) * CALLS, nodes=NODES, contexts=(0,), verify_seconds=tuple((v,) for v in verify),
        decision_seconds=decision, rest_seconds=3.0, device="any", pair="any", choice_seconds=choice,
    )  # fmt: skip


def planted(rounds=600, seed=0, *, shown=True, in_mass=False):
    """In half of the rounds few nodes hold the text's path; in the others only many hold it behind its first token. The
    scores' last place, or the mass, says which."""
    data = make_rounds(rounds, seed=seed)
    generator = torch.Generator().manual_seed(seed + 1)
    wide = torch.rand(rounds, generator=generator) < 0.5
    told = wide if shown else torch.rand(rounds, generator=generator) < 0.5
    scores, mass = data.scores.clone(), torch.rand(rounds, CALLS, 3, generator=generator).sort(-1).values * 0.01
    if in_mass:
        mass += torch.where(told[:, None, None], torch.tensor([0.0, 0.5, 3.0]), torch.tensor([0.0, 0.1, 0.2]))
    else:
        scores[..., -1] = torch.where(told[:, None], -7.0, -9.0)
    most = torch.where(wide[:, None, None], torch.tensor([1, 1, CALLS]), torch.tensor([CALLS] * 3))
    accepted = torch.minimum(data.accept_lengths[..., None], most)
    parts = data.tensors() | {
        "scores": scores, "accepted_by_nodes": accepted.to(torch.uint8), "mass_by_nodes": mass,
        "accept_lengths": accepted[..., 2],
    }  # fmt: skip
    return RoundDataset.of(parts, replace(data.header, nodes=NODES), data.prompts)


def brute_force(logits, sizes, value):
    """Minus the mean over rounds and decisions of what all ends are worth, weighted by their probabilities."""
    stop, which = logits.softmax(-1)[..., 0], sizes.softmax(-1)
    rounds, calls, choices = value.shape
    total = torch.zeros((), dtype=value.dtype)
    for n, k, s in itertools.product(range(rounds), range(calls), range(choices)):
        chance = which[n, k, s]
        for t in range(k):
            chance = chance * (1 - stop[n, t])
        if k < calls - 1:
            chance = chance * stop[n, k]
        total = total + chance * value[n, k, s]
    return -total / (rounds * (calls - 1))


def drawn(choices, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(5, 3, 2, dtype=torch.float64, generator=generator, requires_grad=True)
    sizes = torch.randn(5, 4, choices, dtype=torch.float64, generator=generator, requires_grad=True)
    return logits, sizes, torch.randn(5, 4, choices, dtype=torch.float64, generator=generator) * 3 + 100


def test_the_gradient_is_that_of_all_ends_one_by_one():
    logits, sizes, value = drawn(3)
    ours = torch.autograd.grad(joint_loss(logits, sizes, value, torch.ones(len(value))), (logits, sizes))
    theirs = torch.autograd.grad(brute_force(logits, sizes, value), (logits, sizes))
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=1e-9, atol=1e-11)
        assert other.abs().min() > 0
    raised = value + torch.randn(5, 1, 1, dtype=torch.float64)  # what no end changes
    again = torch.autograd.grad(joint_loss(logits, sizes, raised, torch.ones(len(raised))), (logits, sizes))
    torch.testing.assert_close(again[0], ours[0])


def test_of_one_number_it_is_the_exact_loss():
    logits, sizes, _ = drawn(1)
    lengths = torch.randint(0, 4, (5, 4)).double()
    times = torch.rand(5, 4, dtype=torch.float64) + 1
    value = (lengths - 0.7 * times)[..., None]
    (ours,) = torch.autograd.grad(joint_loss(logits, sizes, value, torch.ones(len(value))), logits)
    returns = ratio_returns(lengths, times, rate=0.7).double()
    (theirs,) = torch.autograd.grad(exact_loss(logits, returns), logits)
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7)  # returns are float32
    assert theirs.abs().max() > 0.01


def test_the_bonus_is_for_undecided_choices_where_rounds_end():
    logits, sizes, _ = drawn(3)
    stop, which = logits.softmax(-1)[..., 0], sizes.softmax(-1)
    alive = torch.cat((torch.ones(5, 1), (1 - stop).cumprod(1)), 1)
    ends = alive * torch.cat((stop, torch.ones(5, 1)), 1)
    expected = (ends * -(which * which.log()).sum(-1)).sum(1).mean()
    assert choice_entropy(logits, sizes).item() == pytest.approx(expected.item())
    gradient = torch.autograd.grad(choice_entropy(logits, sizes), (logits, sizes), allow_unused=True)
    assert gradient[0] is None, "it must not move the stop"
    assert gradient[1].abs().max() > 0
    assert choice_entropy(logits, torch.zeros(5, 4, 3).double()).item() == pytest.approx(torch.tensor(3.0).log().item())


@pytest.mark.parametrize("in_mass", [False, True], ids=["in the scores", "in the mass"])
def test_training_finds_which_rounds_many_nodes_pay_in(tmp_path, in_mass):
    costs, other = table(), planted(seed=7, in_mass=in_mass)
    result = train_policy(planted(in_mass=in_mass), tmp_path, costs=costs, **FAST)
    network = load_policy(tmp_path)
    assert network.nodes == NODES
    got = replay(network, other, costs)
    known = other.expected_of_nodes()
    best = replay_ends(oracle_ends(other, costs, known), other, costs).tokens_per_time
    fixed = max(
        replay_ends(oracle_ends(data, costs, data.expected_accept()), data, costs).tokens_per_time
        for data in map(other.with_nodes, NODES)
    )  # the best that knows all and always verifies as many: no stop policy is better
    assert max(tune_fixed(other, costs).curve.values()) < fixed < 0.92 * best
    assert got.tokens_per_time > fixed + 0.5 * (best - fixed)
    assert got.node_histogram.keys() <= {4, 60}, "16 are never better than both"
    assert min(got.node_histogram.values()) > 150
    assert result["collapsed"] is None
    held_out = json.loads((tmp_path / "config.json").read_text())["held_out"]
    assert held_out["node_histogram"].keys() <= {"4", "60"}


def test_a_choice_of_nodes_alone_is_no_collapse(tmp_path):
    """Calls cost nothing, so that it never stops; it chooses all the same."""
    free = replace(table(), draft_call_seconds=(0.0,) * CALLS)
    result = train_policy(planted(), tmp_path / "a", costs=free, **FAST)
    assert result["stop_histogram"][-1] > 0.95 * sum(result["stop_histogram"])
    assert result["node_histogram"].keys() == {4, 60}
    assert result["collapsed"] is None
    with pytest.warns(UserWarning, match="the policy never stops"):
        result = train_policy(planted(), tmp_path / "b", costs=free, **FAST, nodes=(4,))
    assert (result["collapsed"], result["node_histogram"]) == ("never stops", {4: 120})


def test_nothing_is_found_where_nothing_is_told(tmp_path):
    """The test above can fail: where the scores tell of other rounds, no policy gains what they would."""
    costs, other = table(), planted(seed=7, shown=False)
    train_policy(planted(shown=False), tmp_path, costs=costs, **FAST)
    known = oracle_ends(other, costs, other.expected_of_nodes())
    best = replay_ends(known, other, costs).tokens_per_time
    assert replay(load_policy(tmp_path), other, costs).tokens_per_time < 0.9 * best


def test_a_resumed_run_is_the_same_run(tmp_path, monkeypatch):
    data, options = planted(200), FAST | {"epochs": 4, "costs": table()}
    whole = train_policy(data, tmp_path / "whole", **options)
    original, calls = training.PolicyRun.train_epoch, []

    def interrupted(self):
        calls.append(None)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.PolicyRun, "train_epoch", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_policy(data, tmp_path / "cut", **options)
    assert train_policy(data, tmp_path / "cut", **options) == whole | {"policy": str(tmp_path / "cut")}
    cut, one = load_policy(tmp_path / "cut").state_dict(), load_policy(tmp_path / "whole").state_dict()
    assert all(torch.equal(cut[name], one[name]) for name in one)
    with pytest.raises(UsageError, match="other settings"):
        train_policy(data, tmp_path / "cut", **options, nodes=(4, 60))


CHOICES = {
    "all that no larger one undercuts": ((1.0, 2.0, 4.0), {}, NODES, NODES),
    "one is as dear as a larger one": ((1.0, 4.0, 4.0), {}, (4, 60), (4, 60)),
    "nothing to choose": ((4.0, 4.0, 4.0), {}, (60,), ()),
    "nothing that pays but another number": ((1.0, 0.5, 4.0), {"nodes": (16,)}, (16,), (16,)),
    "some": ((1.0, 2.0, 4.0), {"nodes": (4, 16)}, (4, 16), (4, 16)),
    "as a list": ((4.0, 4.0, 4.0), {"nodes": [4, 16]}, (4, 16), (4, 16)),
    "one": ((1.0, 2.0, 4.0), {"nodes": (16,)}, (16,), (16,)),
    "the paper's objective": ((1.0, 2.0, 4.0), {"objective": "paper", "beta": 3.0}, (60,), ()),
    "drawn actions": ((1.0, 2.0, 4.0), {"estimator": "reinforce"}, (60,), ()),
}


@pytest.mark.parametrize(("verify", "options", "nodes", "learned"), CHOICES.values(), ids=CHOICES.keys())
@pytest.mark.filterwarnings("ignore:train_policy. the policy:UserWarning")
def test_what_there_is_to_choose_among(tmp_path, verify, options, nodes, learned):
    data = planted(160)
    train_policy(data, tmp_path, costs=table(verify), **(FAST | {"epochs": 1}), **options)
    settings = json.loads((tmp_path / "config.json").read_text())["training"]
    assert tuple(settings["nodes"]) == nodes
    assert settings["tree"]["total_tokens"] == 60
    assert load_policy(tmp_path).nodes == learned


@pytest.mark.filterwarnings("ignore:train_policy. the policy:UserWarning")
def test_a_number_that_undercuts_all_others_is_no_choice_and_the_trees_own_stays(tmp_path):
    """Since a decoder verifies as many as its tree has."""
    data = planted(160).with_nodes(16)
    train_policy(data, tmp_path, costs=table((4.0, 4.0, 4.0)), **(FAST | {"epochs": 1}))
    assert json.loads((tmp_path / "config.json").read_text())["training"]["nodes"] == [16]
    assert load_policy(tmp_path).nodes == ()


BAD = {
    r"verifying 5, 9 nodes .* which know of \[4, 16, 60\]": {"nodes": (5, 9)},
    r"nodes must be ascending numbers, got \(16, 4\)": {"nodes": (16, 4)},
    r"nodes must be ascending numbers, got \(\)": {"nodes": ()},
    "a choice of nodes is learned with objective=\"ratio\" and estimator=\"exact\" alone": {
        "nodes": (4, 16), "estimator": "reinforce",
    },
}  # fmt: skip


@pytest.mark.parametrize(("message", "options"), BAD.items(), ids=BAD.keys())
def test_a_bad_choice_is_refused(tmp_path, message, options):
    with pytest.raises(UsageError, match=message):
        train_policy(planted(80), tmp_path, costs=table(), **FAST, **options)
    assert not tmp_path.exists() or not any(tmp_path.iterdir())


@pytest.mark.filterwarnings("ignore:train_policy. the policy:UserWarning")
def test_recordings_of_before_train_as_ever(tmp_path):
    data = make_rounds(160)
    train_policy(data, tmp_path, costs=table(), **(FAST | {"epochs": 1}))
    assert load_policy(tmp_path).nodes == ()
    with pytest.raises(UsageError, match="record them again"):
        train_policy(data, tmp_path / "b", costs=table(), **(FAST | {"epochs": 1}), nodes=(4, 16))
    assert PolicyTraining().nodes is None


def test_numbers_worth_a_choice_by_hand():
    header = planted(80).header
    for costs, worth in (
        (table(), NODES),
        (table((1.0, 3.0, 2.0)), (4, 60)),
        (table((2.0, 2.0, 2.0)), (60,)),
        (replace(table(), nodes=(4, 16), verify_seconds=((1.0,), (2.0,))), (4, 16)),
    ):
        assert costs.worth_choosing(header.nodes, header.tree) == worth


def test_it_is_among_the_contenders_where_rounds_know_nodes():
    train, develop = planted(160), planted(160, seed=3, in_mass=True)
    found = tuned_contenders(train, develop, table(), epochs=1)
    assert found["threshold and nodes"].policy.nodes == NODES
    again = tune_nodes_by_mass(develop, table())
    assert found["threshold and nodes"].curve == again.curve
    assert max(again.curve.values()) == replay(again.policy, develop, table()).tokens_per_time
    assert "threshold and nodes" not in tuned_contenders(make_rounds(160), make_rounds(160), table(), epochs=1)
