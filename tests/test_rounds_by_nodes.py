"""What other numbers of nodes would have had accepted, against recordings with trees of that size, and what becomes of
it on the way to disk and back."""

from dataclasses import replace

import pytest
import torch
from rounds_files import HEADER, IDS, prompt_rounds
from test_record import PROMPTS, make

from radar.errors import UsageError
from radar.replay.full_round import FullRounds
from radar.replay.record import record
from radar.replay.recording import Recording, read_rounds
from radar.replay.rounds import BY_NODES, RoundDataset, RoundsHeader, concatenate
from radar.tools.twins import fingerprint
from radar_kernels import tree_mass

NODES = (12, 16, 32)  # what a tree of 12 nodes knows of; its six calls write 48 candidates
HOW = {"greedy": (0.0, False), "sampled": (1.0, False), "sampled, at every token": (1.0, True)}


@pytest.fixture(scope="module", params=HOW.values(), ids=HOW.keys())
def recorded(request, tmp_path_factory):
    """{nodes: the rounds of trees of that size}, of the same texts, which may end."""
    temperature, every_token = request.param
    folder, decoder = tmp_path_factory.mktemp("rounds"), make()
    decoder.eos_token_ids = frozenset({2})
    folders = {nodes: folder / str(nodes) for nodes in NODES}
    options = {"max_new_tokens": 30, "temperature": temperature, "every_token": every_token}
    record(decoder, [*PROMPTS, [1, 4], [3, 3, 0]], folders, **options, progress=False)
    return {nodes: read_rounds(path) for nodes, path in folders.items()}


def test_they_are_what_trees_of_that_size_have_accepted(recorded):
    base = recorded[12]
    assert base.header.nodes == NODES
    for at, (nodes, other) in enumerate(recorded.items()):
        assert other.header.tree.total_tokens == nodes
        assert torch.equal(base.accepted_by_nodes[..., at].long(), other.accept_lengths)
        if base.header.temperature > 0:
            expected = other.distribution @ torch.arange(7.0)
            torch.testing.assert_close(base.expected_by_nodes[..., at], expected, atol=2e-6, rtol=1e-5)
    assert (base.expected_by_nodes is None) == (base.header.temperature == 0)
    gained = base.expected_of_nodes().mean(0)
    assert bool((gained.diff(dim=1) >= 0).all())
    assert float(gained[-1, -1] - gained[-1, 0]) > 0.02, "more nodes do not matter here"


@pytest.mark.parametrize("nodes", NODES[1:])
def test_rounds_with_another_number_of_nodes_are_those_of_such_trees(recorded, nodes):
    ours, theirs = recorded[12].with_nodes(nodes), recorded[nodes]
    assert ours.header.tree == theirs.header.tree
    assert torch.equal(ours.accept_lengths, theirs.accept_lengths)
    torch.testing.assert_close(ours.expected_accept(), theirs.expected_accept(), atol=2e-6, rtol=1e-5)
    assert ours.header.nodes == NODES
    assert ours.distribution is None  # it is of other trees


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_the_mass_is_that_of_the_tree_when_drafting_ends(temperature):
    decoder = make()
    text = FullRounds(decoder, temperature).text(PROMPTS[0], 30, seed=3)
    header = RoundsHeader(decoder.tree, temperature, nodes=NODES)
    rounds = text.rounds(0, header, fingerprint("a prompt"))
    assert len(rounds) > 4
    level = torch.tensor([0] * 3 + [1 + slot // 9 for slot in range(45)])  # slots of call 1, 2, ...
    for stop in range(6):
        drafted = text.tree.scores[: len(rounds)].masked_fill(level > stop, -torch.inf)
        mass = tree_mass(drafted, torch.tensor(NODES, dtype=torch.int32))
        torch.testing.assert_close(rounds.mass_by_nodes[:, stop], mass, atol=2e-6, rtol=1e-5)
    assert bool((rounds.mass_by_nodes[:, -1].diff(dim=1) > 0).any())


def test_fewer_calls_are_the_first_ones(recorded):
    data = recorded[12]
    few = data.truncate(2)
    assert few.header.nodes == NODES
    for name in BY_NODES:
        if (part := getattr(data, name)) is not None:
            assert torch.equal(getattr(few, name), part[:, :2])
    torch.testing.assert_close(few.with_nodes(16).expected_accept(), data.with_nodes(16).expected_accept()[:, :2])


def test_a_selection_takes_them_along(recorded):
    data = recorded[12]
    some = data.select(data.prompt == 1)
    assert torch.equal(some.mass_by_nodes, data.mass_by_nodes[data.prompt == 1])
    assert some.fingerprint() != replace(some, mass_by_nodes=some.mass_by_nodes + 1).fingerprint()


def known(prompt, nodes, temperature=0.0):
    """Made up: what is accepted with n nodes is their place in `nodes`, plus ten times the prompt."""
    header = replace(HEADER, nodes=nodes, temperature=temperature)
    one = prompt_rounds(prompt, replace(HEADER, temperature=temperature))
    table = (torch.tensor(nodes) + 100 * prompt).expand(3, 4, -1)
    parts = {"accepted_by_nodes": table.to(torch.uint8), "mass_by_nodes": table.float()}
    if temperature:
        parts["expected_by_nodes"] = table.float() / 2
    return RoundDataset.of(one.tensors() | (parts if nodes else {}), header, one.prompts)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_to_disk_and_back(tmp_path, temperature):
    ours = [known(prompt, (5, 12), temperature) for prompt in range(3)]
    with Recording(tmp_path, ours[0].header, IDS) as recording:
        for prompt, one in enumerate(ours):
            recording.add(prompt, one)
    data = read_rounds(tmp_path)
    assert data.header == ours[0].header
    assert data.tensors().keys() == ours[0].tensors().keys()
    for name, part in data.tensors().items():
        assert torch.equal(part, torch.cat([getattr(one, name) for one in ours])), name
        assert part.dtype == getattr(ours[0], name).dtype


def test_recordings_of_before_are_read(tmp_path, monkeypatch):
    now = RoundsHeader.to_dict
    with monkeypatch.context() as before:
        before.setattr(RoundsHeader, "to_dict", lambda self: {k: v for k, v in now(self).items() if k != "nodes"})
        with Recording(tmp_path, HEADER, IDS) as recording:
            recording.add(0, prompt_rounds(0))
    data = read_rounds(tmp_path)
    assert data.header == HEADER
    assert (data.header.nodes, data.accepted_by_nodes) == ((), None)
    assert torch.equal(data.expected_accept(), prompt_rounds(0).expected_accept())
    with pytest.raises(UsageError, match=r"what verifying other numbers of nodes .* know of \[\]: record them again"):
        data.of_nodes()


def test_rounds_put_together_know_what_all_know():
    both = concatenate([known(0, (5, 9, 12)), known(1, (9, 12, 30))])
    assert both.header.nodes == (9, 12)
    assert both.mass_by_nodes[:, 0].tolist() == [[9, 12]] * 3 + [[109, 112]] * 3
    assert both.accepted_by_nodes[:, 0].tolist() == [[9, 12]] * 3 + [[109, 112]] * 3
    for other in (known(1, ()), known(1, (30,))):
        with_old = concatenate([known(0, (5, 12)), other])
        assert with_old.header.nodes == ()
        assert len(with_old) == 6
        assert not with_old.tensors().keys() & set(BY_NODES)


def test_numbers_that_were_not_recorded_are_named():
    data = known(0, (5, 12))
    assert data.of_nodes([12, 5]) is data
    with pytest.raises(UsageError, match=r"what verifying 6, 30 nodes .* which know of \[5, 12\]"):
        data.of_nodes([30, 5, 6])
    with pytest.raises(UsageError, match="what verifying 7 nodes"):
        data.with_nodes(7)


def test_parts_have_a_place_for_each_number():
    one = known(0, (5, 12))
    with pytest.raises(UsageError, match=r"mass_by_nodes must be \[3, 4, 2\] for this tree, got \[3, 4, 1\]"):
        replace(one, mass_by_nodes=one.mass_by_nodes[..., :1])
