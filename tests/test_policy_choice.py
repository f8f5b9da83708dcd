"""What may be given as a policy, what happens to one that is changed, and rows that decide for themselves."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from fakes import tiny_draft, tiny_target

from radar import FixedDepth, RadarDecoder, Threshold, TreeConfig
from radar.errors import FormatError, NotFoundError, UsageError
from radar.policy.base import RoundSignals, StopPolicy, attach_signals
from radar.policy.baselines import DDD, Capped, ExpectedGain, OptTree, Talon
from radar.policy.baselines_heads import AcceptanceHead, LevelNetwork, LevelPolicy
from radar.policy.baselines_history import GammaTune
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import save_policy
from radar.policy.resolve import resolve_policy

CPU = torch.device("cpu")
TREE = TreeConfig(tree_top_k=4, total_tokens=20, max_calls=6)


def make(**options: Any) -> RadarDecoder:
    return RadarDecoder(tiny_target(), **{"draft": tiny_draft(), "tree": TREE, "max_length": 64, **options})


@pytest.fixture
def trained(tmp_path):
    save_policy(PolicyNetwork(4, 8, mlp_size=8), tmp_path / "policy")
    return tmp_path / "policy"


def test_every_form_of_a_policy_is_taken_at_both_doors(trained):
    file = trained / "policy.safetensors"
    own = FixedDepth(3)
    decoder = make(policy=own)
    assert decoder.policy is own
    for value, wanted in [
        (trained, RadarPolicy), (str(trained), RadarPolicy), (file, RadarPolicy), (None, Threshold), (own, FixedDepth),
    ]:  # fmt: skip
        assert type(resolve_policy(value)) is wanted
        decoder.policy = value
        assert type(decoder.policy) is wanted
    assert decoder.generate([1, 2, 3], max_new_tokens=4).token_ids


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (8, r"got 8, which lacks bind, reset, stop: did you mean FixedDepth\(8\)\?"),
        (0.3, r"got 0.3, .*: did you mean Threshold\(0.3\)\?"),
        (True, "got True, which lacks bind, reset, stop$"),
        (FixedDepth, r": an object is needed, FixedDepth\(\.\.\.\)"),
        (PolicyNetwork(4, 8), r"did you mean RadarPolicy\(network\)\?"),
        (torch.zeros(2), "which lacks bind, reset, stop"),
        ({"bind": 1}, "which lacks bind, reset, stop"),
    ],
    ids=str,
)
def test_anything_else_says_what_was_expected(value, message):
    decoder = make(policy=FixedDepth(2))
    for door in (lambda: resolve_policy(value), lambda: setattr(decoder, "policy", value)):
        with pytest.raises(UsageError, match=message):
            door()
    assert repr(decoder.policy) == "FixedDepth(2)"


def test_an_object_that_only_looks_like_a_policy_is_refused():
    class Half:
        def bind(self, *args: Any) -> None: ...

        def stop(self, scores: Any) -> Any: ...

    with pytest.raises(UsageError, match="which lacks reset"):
        resolve_policy(Half())


def test_paths_without_a_policy_say_what_is_there(trained, tmp_path):
    with pytest.raises(FormatError, match=r"config.json is no stop policy, .*: give its folder, .*policy"):
        resolve_policy(trained / "config.json")
    (trained / "policy.safetensors").rename(trained / "model.safetensors")
    with pytest.raises(NotFoundError, match=r"this one holds config.json, model.safetensors"):
        resolve_policy(trained)
    with pytest.raises(NotFoundError, match=r"no stop policy at .*nowhere: expected a folder or file"):
        resolve_policy(tmp_path / "nowhere")
    (tmp_path / "notes.safetensors").write_text("not tensors")
    with pytest.raises(FormatError, match=r"notes.safetensors is not a stop policy"):
        resolve_policy(tmp_path / "notes.safetensors")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"draft": None}, "draft must be the folder .*, got None: to decode without one, take AutoregressiveDecoder"),
        ({"draft": 3}, "draft must be the folder of an EAGLE-3 head, or an Eagle3Draft, got 3"),
        ({"draft": __file__}, "got the file .*test_policy_choice.py: give "),
        ({"tree": {"total_tokens": 30}}, r"tree must be a TreeConfig, .*: did you mean TreeConfig\(\*\*...\)\?"),
        ({"tree": 30}, "tree must be a TreeConfig, such as TreeConfig.total_tokens=60., or None, got 30"),
    ],
)
def test_other_parts_of_a_wrong_type(options, message):
    with pytest.raises(UsageError, match=message):
        make(**options)


def network(context: bool = False) -> LevelNetwork:
    torch.manual_seed(0)
    return LevelNetwork(4, 8, context=context)


def radar_policy() -> RadarPolicy:
    torch.manual_seed(0)
    net = PolicyNetwork(4, 8, mlp_size=8)
    for parameter in net.parameters():
        parameter.data.mul_(4)
    return RadarPolicy(net)


POLICIES: dict[str, StopPolicy] = {
    "fixed": FixedDepth(3),
    "threshold": Threshold(0.4),
    "radar": radar_policy(),
    "capped": Capped(radar_policy(), 4),
    "gain": ExpectedGain([0.9, 0.6, 0.3]),
    "ddd": DDD(-0.5, checks=(2, 4), calls=6),
    "talon": Talon(0.5),
    "opt": OptTree(0.3),
    "acceptance": AcceptanceHead(network(), 0.7),
    "level": LevelPolicy(network(context=True)),
    "gamma": GammaTune(0.5, calls=3, step=1, low=1, high=6),
}


@pytest.mark.parametrize("name", POLICIES)
def test_settings_of_a_policy_are_fixed(name):
    """A decoder has read them, or its graph holds them: a change would do nothing."""
    policy = POLICIES[name]
    for setting in [key for key in vars(policy) if key[0] != "_"]:
        with pytest.raises(UsageError, match=rf"{setting} is fixed once .* decoder.policy = {type(policy).__name__}\("):
            setattr(policy, setting, getattr(policy, setting))
    twin = copy.copy(policy)
    attach_signals(twin, signals(1))
    twin.bind(1, TREE, CPU)
    assert {key for key in vars(twin) if key[0] != "_"} == {key for key in vars(policy) if key[0] != "_"}


def signals(rows: int) -> RoundSignals:
    accepted, context = torch.tensor([-1, 2, 0, 5])[:rows], torch.tensor([40, 900, 3, 77])[:rows]
    return RoundSignals(accepted, context)


def flags(policy: StopPolicy, levels: torch.Tensor, seen: RoundSignals) -> torch.Tensor:
    """[rounds, calls, B] of levels [rounds, calls, B, k], gone on with whatever is said."""
    policy = copy.copy(policy)
    attach_signals(policy, seen)
    policy.bind(levels.shape[2], TREE, CPU)
    found = []
    for calls in levels:
        policy.reset()
        found.append(torch.stack([policy.stop(scores.contiguous()) for scores in calls]))
    return torch.stack(found)


@pytest.mark.parametrize("name", POLICIES)
def test_three_rows_decide_as_each_of_them_alone(name):
    generator = torch.Generator().manual_seed(5)
    pace = torch.tensor([0.05, 0.6, 2.0])[:, None]
    steps = torch.rand(2, TREE.max_calls, 3, 4, generator=generator) * pace
    levels = -(steps.cumsum(1) + steps.cumsum(-1))
    whole = signals(3)
    together = flags(POLICIES[name], levels, whole)
    assert together.shape == (2, TREE.max_calls, 3)
    assert together.dtype == torch.bool
    for row in range(3):
        own = RoundSignals(*(signal[row : row + 1] for signal in whole))
        alone = flags(POLICIES[name], levels[:, :, row : row + 1], own)
        assert torch.equal(together[:, :, row], alone[:, :, 0])
    if name != "fixed":
        assert (together[..., :1] != together[..., 1:]).any(), "the rows never differ: nothing was told apart"


def test_rows_that_draw_do_not_share_their_draws():
    torch.manual_seed(1)
    scores = torch.randn(1, 4).sort(descending=True).values.expand(3, 4)
    drawn = flags(RadarPolicy(PolicyNetwork(4, 8), sample=True), scores.expand(8, 6, 3, 4), signals(3))
    assert (drawn[..., 0] != drawn[..., 1]).any()
    assert (drawn[..., 1] != drawn[..., 2]).any()
