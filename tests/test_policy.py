"""The paper's policy: decisions equal plain PyTorch's, files load strictly, sampling follows its seed."""

import copy
import json
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from radar.config import TreeConfig
from radar.policy.baselines_heads import LevelNetwork, LevelPolicy
from radar.policy.lstm import RadarPolicy
from radar.policy.network import PolicyNetwork
from radar.policy.network_files import load_policy, save_policy

UPSTREAM = Path(__file__).resolve().parents[2] / "shared" / "data" / "upstream_policy"
CPU = torch.device("cpu")
TREE = TreeConfig()
SHAPES = {
    "lstm.weight_ih_l0": (512, 10),
    "lstm.weight_hh_l0": (512, 128),
    "lstm.bias_ih_l0": (512,),
    "lstm.bias_hh_l0": (512,),
    "mlp.0.weight": (128, 138),
    "mlp.0.bias": (128,),
    "mlp.3.weight": (2, 128),
    "mlp.3.bias": (2,),
}


def synthetic_state(seed: int = 2) -> dict[str, Tensor]:
    """A state dict in upstream's layout, with weights large enough that decisions differ from round to round."""
    generator = torch.Generator().manual_seed(seed)
    scales = {name: 0.5 if name == "mlp.3.weight" else 0.08 for name in SHAPES}
    return {name: torch.randn(shape, generator=generator) * scales[name] for name, shape in SHAPES.items()}


def make_scores(rounds: int, seed: int = 0) -> Tensor:
    """[rounds, 16, 10]: cumulative log-probabilities as a draft gives them: falling by the level, sorted in it."""
    generator = torch.Generator().manual_seed(seed)
    steps = torch.rand(rounds, 16, 1, generator=generator) * torch.rand(rounds, 1, 1, generator=generator) * 2
    gaps = torch.rand(rounds, 16, 10, generator=generator) * torch.rand(rounds, 16, 1, generator=generator)
    return (-(steps.cumsum(1) + gaps.cumsum(-1))).contiguous()


@torch.no_grad()
def plain_stop_probability(state: dict[str, Tensor], scores: Tensor) -> Tensor:
    """[N, 16] P(stop) from modules put together here."""
    lstm = nn.LSTM(10, 128, batch_first=True)
    mlp = nn.Sequential(nn.Linear(138, 128), nn.ReLU(), nn.Dropout(0.1), nn.Linear(128, 2)).eval()
    lstm.load_state_dict({k.removeprefix("lstm."): v for k, v in state.items() if k.startswith("lstm.")})
    mlp.load_state_dict({k.removeprefix("mlp."): v for k, v in state.items() if k.startswith("mlp.")})
    out, _ = lstm(scores)
    return mlp(torch.cat((out, scores), -1)).softmax(-1)[..., 0]


def decisions(policy: RadarPolicy, scores: Tensor) -> Tensor:
    """[N, 16] flags of one round, continued whatever the policy says."""
    policy.reset()
    return torch.stack([policy.stop(scores[:, level].contiguous()) for level in range(scores.shape[1])], 1)


def check_decisions(path: Path, state: dict[str, Tensor]) -> Tensor:
    scores = make_scores(200)
    probability = plain_stop_probability(state, scores)
    policy = RadarPolicy(path)
    policy.bind(len(scores), TREE, CPU)
    stops = decisions(policy, scores)
    clear = (probability - 0.5).abs() > 1e-5  # closer than that, the order of summation decides
    assert clear.float().mean() > 0.99
    assert torch.equal(stops[clear], (probability > 0.5)[clear])
    assert torch.equal(decisions(policy, scores), stops), "state of the last round is left over"
    return stops


@pytest.mark.parametrize("name", ["llama3", "vicuna", "ds"])
def test_published_policies_decide_as_plain_pytorch(name: str) -> None:
    path = UPSTREAM / f"{name}.pt"
    if not path.exists():
        pytest.skip("the published policies are not here")
    state = torch.load(path, map_location="cpu", weights_only=True)
    assert check_decisions(path, state).any()


def test_state_dict_in_the_published_layout(tmp_path: Path) -> None:
    torch.save(synthetic_state(), tmp_path / "policy.pt")
    stops = check_decisions(tmp_path / "policy.pt", synthetic_state())
    assert 0.05 < stops.float().mean() < 0.95
    other = synthetic_state() | {"mlp.3.bias": torch.tensor([3.0, -3.0])}
    assert not torch.equal(stops, plain_stop_probability(other, make_scores(200)) > 0.5), "the check sees no difference"


def test_network_is_the_served_policy(tmp_path: Path) -> None:
    network = PolicyNetwork(10, 24, mlp_size=16).eval()
    nn.init.normal_(network.mlp[3].weight, std=2.0)
    policy = RadarPolicy(network)
    policy.bind(50, TREE, CPU)
    scores = make_scores(50)
    with torch.no_grad():
        probability = network(scores).softmax(-1)[..., 0]
    clear = (probability - 0.5).abs() > 1e-5
    assert torch.equal(decisions(policy, scores)[clear], (probability > 0.5)[clear])


def test_missing_candidates_do_not_poison_the_state() -> None:
    scores = make_scores(4)
    scores[:, :2, 5:] = -torch.inf
    policy = RadarPolicy(PolicyNetwork())
    policy.bind(4, TREE, CPU)
    decisions(policy, scores)
    assert policy._state.isfinite().all()
    assert policy.network(scores).isfinite().all()


def test_state_lives_in_fixed_buffers() -> None:
    policy = RadarPolicy(PolicyNetwork(), sample=True)
    policy.bind(3, TREE, CPU)
    before = [t.data_ptr() for t in (policy._state, policy._draws, policy._call)]
    decisions(policy, make_scores(3))
    assert policy._state.abs().sum() > 0
    assert before == [t.data_ptr() for t in (policy._state, policy._draws, policy._call)]


def test_rows_are_independent() -> None:
    network, scores = PolicyNetwork(), make_scores(6)
    nn.init.normal_(network.mlp[3].weight, std=2.0)
    policy, single = RadarPolicy(network), RadarPolicy(network)
    policy.bind(6, TREE, CPU)
    single.bind(1, TREE, CPU)
    for row, expected in enumerate(decisions(policy, scores)):
        assert torch.equal(decisions(single, scores[row : row + 1])[0], expected)


def test_sampling_follows_its_seed_and_its_probability() -> None:
    rounds = 4000
    torch.manual_seed(0)
    network = PolicyNetwork(10, 16, mlp_size=16).eval()  # untrained: undecided
    scores = make_scores(1).expand(rounds, -1, -1)
    with torch.no_grad():
        probability = network(scores[:1]).softmax(-1)[0, :, 0]

    def draw(seed: int) -> Tensor:
        policy = RadarPolicy(network, sample=True, seed=seed)
        policy.bind(rounds, TREE, CPU)
        first = decisions(policy, scores)
        assert not torch.equal(decisions(policy, scores), first), "every round draws anew"
        policy.bind(rounds, TREE, CPU)
        assert torch.equal(decisions(policy, scores), first), "bind seeds anew"
        return first

    stops = draw(1)
    assert not torch.equal(stops, draw(2))
    error = (probability * (1 - probability) / rounds).sqrt().clamp(min=1e-4)
    assert ((stops.float().mean(0) - probability).abs() / error).max() < 5  # 16 levels: fails by chance 1e-5 at most
    both = (probability > 0.05) & (probability < 0.95)
    assert both.sum() >= 2, "the scores leave something to draw"
    a, b = stops[:, both].float().unbind(1)[:2]
    assert torch.corrcoef(torch.stack((a, b)))[0, 1].abs() < 5 / rounds**0.5, "levels share a random number"


def test_another_tree_is_refused() -> None:
    with pytest.raises(ValueError, match=r"reads 10 scores.*tree_top_k=8"):
        RadarPolicy(PolicyNetwork()).bind(1, TreeConfig(tree_top_k=8), CPU)
    RadarPolicy(PolicyNetwork(8)).bind(1, TreeConfig(tree_top_k=8), CPU)


@pytest.mark.parametrize("where", ["folder", "safetensors"])
def test_saved_policies_come_back(tmp_path: Path, where: str) -> None:
    network = PolicyNetwork(6, 20, mlp_size=12)
    save_policy(network, tmp_path / "out", metadata={"objective": "paper", "tree": {"tree_top_k": 6}})
    config = json.loads((tmp_path / "out/config.json").read_text())
    assert (config["format"], config["version"], config["input_size"], config["objective"]) == (
        "radar-policy",
        1,
        6,
        "paper",
    )
    loaded = load_policy(tmp_path / "out" if where == "folder" else tmp_path / "out/policy.safetensors")
    assert not loaded.training
    assert loaded.mlp_size == 12
    assert all(torch.equal(a, b) for a, b in zip(network.weights(), loaded.weights(), strict=True))
    assert sorted(f.name for f in (tmp_path / "out").iterdir()) == ["config.json", "policy.safetensors"]


def test_metadata_may_not_hide_the_format(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="version"):
        save_policy(PolicyNetwork(), tmp_path, metadata={"version": 2})


def test_every_problem_is_listed(tmp_path: Path) -> None:
    state = synthetic_state()
    state["lstm.weight_hh_l0"] = torch.zeros(512, 127)
    state["mlp.0.bias"][:3] = torch.nan
    state["value.weight"] = torch.zeros(1, 128)
    state["mlp.3.weight"] = torch.zeros(2, 128, dtype=torch.int64)
    del state["lstm.bias_ih_l0"]
    torch.save(state, tmp_path / "p.pt")
    with pytest.raises(ValueError, match="not a usable stop policy") as caught:
        load_policy(tmp_path / "p.pt")
    text = str(caught.value)
    assert len(text.splitlines()) == 6, text
    assert "value.weight: unknown tensor [1, 128]" in text
    assert "lstm.bias_ih_l0: missing, expected [512]" in text
    assert "lstm.weight_hh_l0: expected [512, 128], found [512, 127]" in text
    assert "mlp.0.bias: 3 of 128 values are not finite" in text
    assert "mlp.3.weight: expected floating point" in text


@pytest.mark.parametrize("name", SHAPES)
def test_each_tensor_is_needed(tmp_path: Path, name: str) -> None:
    state = synthetic_state()
    kept = state.pop(name)
    torch.save(state, tmp_path / "p.pt")
    with pytest.raises(ValueError, match=rf"{name}: missing"):
        load_policy(tmp_path / "p.pt")
    torch.save(state | {name: kept.unsqueeze(0)}, tmp_path / "p.pt")
    with pytest.raises(ValueError, match=rf"{name}: expected"):
        load_policy(tmp_path / "p.pt")


@pytest.mark.parametrize("suffix", ["pt", "safetensors"])
@pytest.mark.parametrize("kept", [0.0, 0.01, 0.5, 0.99])
def test_cut_files(tmp_path: Path, suffix: str, kept: float) -> None:
    file = tmp_path / f"p.{suffix}"
    if suffix == "pt":
        torch.save(synthetic_state(), file)
    else:
        safetensors.torch.save_file(synthetic_state(), file)
    data = file.read_bytes()
    file.write_bytes(data[: int(len(data) * kept)])
    with pytest.raises(ValueError, match="not a stop policy, or is cut off"):
        load_policy(file)


def test_files_of_another_kind(tmp_path: Path) -> None:
    (tmp_path / "notes.pt").write_text("not a policy")
    torch.save([1, 2, 3], tmp_path / "list.pt")
    torch.save(PolicyNetwork(), tmp_path / "module.pt")
    for name in ("notes.pt", "list.pt", "module.pt"):
        with pytest.raises(ValueError, match=rf"{name} is not a stop policy"):
            load_policy(tmp_path / name)
    for missing in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FileNotFoundError, match=str(missing)):
            load_policy(missing)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ("{", "not JSON"),
        ("[]", "does not describe"),
        ('{"format": "radar-policy", "version": 2}', "version 2 is unknown"),
    ],
)
def test_config_is_checked(tmp_path: Path, config: str, message: str) -> None:
    save_policy(PolicyNetwork(), tmp_path)
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(ValueError, match=message):
        load_policy(tmp_path)
    (tmp_path / "config.json").write_text('{"format": "radar-policy", "version": 1, "input_size": 8}')
    with pytest.raises(ValueError, match="says input_size=8, the tensors 10"):
        load_policy(tmp_path)


def test_a_level_policy_serves_two_decoders():
    """Engines bind shallow copies: binding one elsewhere must not move the network from under the other."""
    policy = LevelPolicy(LevelNetwork(10, 8, context=False))
    here, there = copy.copy(policy), copy.copy(policy)
    here.bind(1, TreeConfig(), torch.device("cpu"))
    there.bind(1, TreeConfig(), torch.device("meta"))
    here.reset()
    assert here.stop(torch.zeros(1, 10)).shape == (1,)
