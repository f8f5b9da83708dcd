"""Which targets decode, and that the others are refused by name: nothing is decoded wrongly in silence.

A window ends within the prompt, and prompts are longer than a chunk.
"""

import random
from types import SimpleNamespace

import pytest
import torch
from fake_graphs import fake_graphs
from fakes import DEVICE, FAMILIES, give_pages, hf_greedy, tiny_draft, tiny_target
from tiny_families import OTHERS, WINDOW, config_class, tiny_family
from torch import nn
from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from trees import random_tree

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, TreeConfig
from radar.engine import budget, build
from radar.target import bound, checks, experts, families, model
from radar.target.checks import check_target
from radar.target.model import TargetModel
from radar.target.norms import FusedNorms
from radar.target.prompt_attention import Chain
from radar_kernels.reference_tree import pack_bits

IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)
ELSEWHERE = {row.prefix.removesuffix("Text") for row in families.FAMILIES.values() if row.sums_elsewhere}
EXACT = [name for name, (prefix, _) in OTHERS.items() if prefix not in ELSEWHERE]
LONG = 140 if DEVICE.type == "cuda" else 70  # a chunk and a little
PROMPT = random.Random(0).choices(range(17), k=LONG)
SIZES = {"max_length": LONG + 58, "max_rows": LONG}
TREE = TreeConfig(total_tokens=20, max_calls=4)


def decoder(model, **options):
    return RadarDecoder(model, draft=tiny_draft().to(model.dtype), policy=FixedDepth(3), tree=TREE,
                        **{"max_length": LONG + 30} | options)  # fmt: skip


def test_the_families_of_the_table_are_those_tested():
    tested = {*FAMILIES, *(config_class(name).model_type for name in OTHERS)}
    assert tested == set(families.FAMILIES)
    assert not tested & set(families.MISSING)


@pytest.mark.parametrize("name", OTHERS)
def test_a_family_decodes_as_generate_does(name):
    model = tiny_family(name)
    expected = hf_greedy(model, PROMPT, 24)
    assert len(set(expected)) > 2
    assert decoder(model).generate(PROMPT, max_new_tokens=24).token_ids == expected


@pytest.mark.parametrize("name", ["qwen2", "gpt_oss", "gemma2"])
def test_texts_in_company_and_sampled_ones_are_the_same(name, monkeypatch):
    """Pages of several rows, and nodes of their trees as entries of one batch."""
    model = tiny_family(name)
    prompts, sampling = [PROMPT, PROMPT[:9], PROMPT[5:60]], SamplingParams(temperature=1.0, seed=2)
    plain = AutoregressiveDecoder(model, max_length=LONG + 30)
    if DEVICE.type == "cpu":
        fake_graphs(monkeypatch)
        monkeypatch.setattr(build, "choose_engine", lambda *_: "graph")
        monkeypatch.setattr(budget, "NODES", {1: 24})
    together = decoder(model, max_batch_size=2)
    found = together.generate(prompts, max_new_tokens=20)
    assert [text.token_ids for text in found] == [hf_greedy(model, prompt, 20) for prompt in prompts]
    sampled = [d.generate(PROMPT, max_new_tokens=20, sampling=sampling).token_ids for d in (plain, together)]
    assert sampled[0] == sampled[1]


def stock_logits(model, text, parents, tokens):
    """Logits [nodes, vocabulary] of the stock model, a forward for each leaf."""
    found = {}
    for leaf in reversed(range(len(tokens))):
        path = [leaf]
        while path[0]:
            path.insert(0, parents[path[0]])
        if leaf not in found:
            logits = model(torch.tensor([text + [tokens[i] for i in path]], device=DEVICE)).logits[0]
            found |= {node: logits[len(text) + i] for i, node in enumerate(path)}
    return torch.stack([found[node] for node in range(len(tokens))])


@pytest.mark.parametrize("name", OTHERS)
@torch.inference_mode()
def test_every_path_is_causal_decoding_and_attention_needs_what_the_table_says(name, rng, monkeypatch):
    """Of two texts, one beyond the window and the other one within, with a tree each."""
    model, needed, attend = tiny_family(name), {}, bound.attend
    monkeypatch.setattr(bound, "attend", lambda *args: needed.update({args[5]: args[7]}) or attend(*args))
    target = TargetModel(model, **SIZES, batch_size=2)
    give_pages(target)
    counts = torch.tensor([LONG, 9], device=DEVICE)
    target.verify_chain(torch.tensor([PROMPT, PROMPT], device=DEVICE))
    target.advance(counts)
    trees = [random_tree(rng, 16, 12, 6) for _ in range(2)]
    tokens, parents, depths, reach = (list(part) for part in zip(*trees, strict=True))
    logits, _ = target.verify(
        torch.tensor(tokens, device=DEVICE), torch.tensor(depths, device=DEVICE),
        pack_bits(torch.tensor(reach, device=DEVICE)),
    )  # fmt: skip
    for row, count in enumerate(counts.tolist()):
        expected = stock_logits(model, PROMPT[:count], parents[row], tokens[row])
        torch.testing.assert_close(logits[row], expected, atol=2e-4, rtol=1e-4)
    if not families.family_of(model).layers or DEVICE.type == "cpu":  # whose layers call no function
        assert [needed[layer] for layer in range(5)] == list(families.layer_needs(model))


@pytest.mark.parametrize("name", OTHERS)
@torch.inference_mode()
def test_what_stands_in_for_stock_modules_gives_their_numbers(name):
    """As on a GPU, where every norm of a family whose layers are stock is a kernel of ours."""
    model = tiny_family(name)
    target = TargetModel(model, **SIZES)
    target.bound._groups, found = [], []
    for fuse in (False, True):
        if fuse:
            target.bound.fuse()
        found.append(target.verify_chain(torch.tensor([PROMPT], device=DEVICE))[0])
    torch.testing.assert_close(*found, atol=2e-4, rtol=1e-4)
    if name in EXACT:  # no sum is left to PyTorch
        joined = [linear for group in target.bound._groups[2:] for linear in group.linears]
        assert {*joined} == {part for part in model.modules() if isinstance(part, nn.Linear)}
    norms = next(group for group in target.bound._groups if isinstance(group, FusedNorms))
    norms.enter()
    count = sum(type(module).__name__.endswith("RMSNorm") and hasattr(module, "weight") for module in model.modules())
    assert len(norms._entered) == (0 if families.family_of(model).layers else count)
    norms.leave()
    assert not any("forward" in module.__dict__ for module in model.modules())


def chained(model, text, path):
    """Logits of the nodes of a path as tokens of a text."""
    target = TargetModel(model, **SIZES, tap_layers=())
    target.verify_chain(torch.tensor([text], device=DEVICE))
    target.advance(len(text))
    found = []
    for token in path:
        found.append(target.verify_chain(torch.tensor([[token]], device=DEVICE))[0][0, 0])
        target.advance(1)
    return torch.stack(found)


@pytest.mark.gpu
@pytest.mark.skipif(not IS_HOPPER, reason="rows are added up in one order on Hopper alone")
@pytest.mark.parametrize("name", EXACT)
@torch.inference_mode()
def test_in_16_bits_a_node_of_a_tree_has_the_bits_of_a_token_of_a_text(name, rng):
    model = tiny_family(name).bfloat16()
    target = TargetModel(model, **SIZES, tap_layers=())
    target.verify_chain(torch.tensor([PROMPT], device=DEVICE))
    target.advance(len(PROMPT))
    tokens, parents, depths, reach = random_tree(rng, 40, 12, 6)
    ids, places = (torch.tensor([x], device=DEVICE) for x in (tokens, depths))
    logits, _ = target.verify(ids, places, pack_bits(torch.tensor([reach], device=DEVICE)))
    for leaf in (39, 33, 21):
        path = [leaf]
        while path[0]:
            path.insert(0, parents[path[0]])
        assert torch.equal(logits[0, path], chained(model, PROMPT, [tokens[i] for i in path]))


@pytest.mark.gpu
@pytest.mark.skipif(not IS_HOPPER, reason="rows are added up in one order on Hopper alone")
@pytest.mark.parametrize("name", ["qwen3", "gemma2", "gemma3_text", "phi3", "olmo2"])
def test_in_16_bits_texts_are_those_of_plain_decoding(name):
    model = tiny_family(name).bfloat16()
    plain, ours = AutoregressiveDecoder(model, max_length=LONG + 60), decoder(model, max_length=LONG + 60)
    rows = decoder(model, max_length=LONG + 60, max_batch_size=3)
    for number, prompt in enumerate((PROMPT, PROMPT[:9], PROMPT[3:40])):
        sampling = SamplingParams(temperature=float(number), seed=number)
        expected = plain.generate(prompt, max_new_tokens=60, sampling=sampling).token_ids
        assert ours.generate(prompt, max_new_tokens=60, sampling=sampling).token_ids == expected
        together = rows.generate([prompt, PROMPT[7:30]], max_new_tokens=60, sampling=sampling)
        assert together[0].token_ids == expected


@pytest.mark.parametrize("own", ["grouped_mm", "eager"])
@pytest.mark.parametrize("name", ["qwen3_moe", "gpt_oss"])
def test_experts_ask_nothing_of_the_host(name, own, monkeypatch):
    """In float32, whose grouped products do. A few rows at a time; no thread beside sees any of it."""
    model = tiny_family(name, experts_implementation=own)
    expected = hf_greedy(model, PROMPT, 8)
    batched, rows = ALL_EXPERTS_FUNCTIONS["batched_mm"], []
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "grouped_mm", lambda *_: pytest.fail("it asks the host"))
    monkeypatch.setitem(ALL_EXPERTS_FUNCTIONS, "batched_mm", lambda *args: rows.append(len(args[1])) or batched(*args))
    monkeypatch.setattr(experts, "_is_on_gpu", lambda _: True)
    one = next(part[0] for path, part in model.named_parameters() if path.endswith("experts.down_proj"))
    monkeypatch.setattr(experts, "COPIED", 5 * 3 * 2 * one.numel() * one.element_size())  # of two experts a row
    assert decoder(model).generate(PROMPT, max_new_tokens=8).token_ids == expected
    assert 1 < max(rows) <= 5
    assert model.config._experts_implementation == own


@pytest.mark.parametrize("name", ["mistral", "qwen2", "gpt_oss", "gemma3_text"])
@torch.inference_mode()
def test_a_window_is_seen_to_its_end_and_no_further(name):
    """What stands before changes nothing in the first layer's output, and the key at its border does."""
    layers = {"layer_types": ["sliding_attention"] * 2} if name != "mistral" else {}
    model = tiny_family(name, num_hidden_layers=2, **layers)
    target = TargetModel(model, **SIZES, tap_layers=(1,))
    changed = [PROMPT.copy() for _ in range(3)]
    changed[1][LONG - 1 - WINDOW] += 1
    changed[2][LONG - WINDOW] += 1
    taps = [target.verify_chain(torch.tensor([text], device=DEVICE))[1][0, -1] for text in changed]
    assert torch.equal(taps[0], taps[1])
    assert not torch.equal(taps[0], taps[2])


@pytest.mark.parametrize("name", ["ministral3", "gpt_oss", "gemma3_text", "gemma2"])
@torch.inference_mode()
def test_a_long_prompts_chunk_sees_what_small_ones_see(name, monkeypatch):
    """Where flash attention serves the heads; it knows no softcap."""
    monkeypatch.setattr(model, "has_flash", lambda *_: True)
    monkeypatch.setattr(model, "LEAST_ROWS", 30)
    target, taken, attend = TargetModel(tiny_family(name), **SIZES), [], bound.attend
    monkeypatch.setattr(bound, "attend", lambda *args: taken.append(type(args[4])) or attend(*args))
    assert target.has_flash == (name != "gemma2")
    small = []
    for first in range(0, LONG, 14):
        small.append(target.verify_chain(torch.tensor([PROMPT[first : first + 14]], device=DEVICE))[0])
        target.advance(14)
    target.cache.reset()
    found = target.verify_chain(torch.tensor([PROMPT], device=DEVICE))[0]
    assert (taken[-1] is Chain) == target.has_flash
    torch.testing.assert_close(found, torch.cat(small, 1), atol=2e-4, rtol=1e-4)


def test_a_window_that_is_off_does_not_count():
    model = tiny_target("qwen2", use_sliding_window=False, sliding_window=16)
    assert decoder(model).generate(PROMPT, max_new_tokens=20).token_ids == hf_greedy(model, PROMPT, 20)


def test_every_other_model_type_is_refused_with_the_list_and_what_it_lacks():
    supported = ", ".join(families.FAMILIES)
    others = {*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *families.MISSING, "of_tomorrow"} - set(families.FAMILIES)
    assert len(others) > 100
    for kind in others:
        with pytest.raises(ValueError, match=f"unsupported target architecture '{kind}'") as refused:
            check_target(SimpleNamespace(config=SimpleNamespace(model_type=kind)), 100, 70)
        why = families.MISSING.get(kind)
        assert str(refused.value).endswith(f"'{kind}'{f' ({why})' if why else ''}; supported: {supported}")


def test_a_family_whose_layers_are_stock_is_refused_on_several_cards(monkeypatch):
    monkeypatch.setattr(checks, "ranks_of", lambda model: "two")
    check_target(tiny_family("mistral"), 100, 70)
    with pytest.raises(
        ValueError, match=r"'phi3' models are not split over several cards: .*one of llama, mistral, qw"
    ):
        check_target(tiny_family("phi3"), 100, 70)


def test_what_of_a_family_does_not_decode_is_refused():
    for make in (decoder, lambda m, **options: AutoregressiveDecoder(m, **options)):
        with pytest.raises(ValueError, match="this gemma3_text model attends in both directions"):
            make(tiny_family("gemma3_text", use_bidirectional_attention=True), max_length=100)
        with pytest.raises(ValueError, match="this gemma4_text model attends in both directions"):
            make(tiny_family("gemma4_shared", use_bidirectional_attention="all"), max_length=100)
        with pytest.raises(ValueError, match=r"llama4_text model decodes up to 64 tokens.*chunks.*max_length=64 or le"):
            make(tiny_family("llama4_text", attention_chunk_size=64), max_length=65)
        with pytest.raises(ValueError, match=r"llama4_text model decodes up to 63 tokens.*scales queries.*got 64"):
            make(tiny_family("llama4_text", floor_scale=64), max_length=64)


def test_a_model_on_several_devices_is_refused():
    model = tiny_target()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match="spread over several devices"):
        decoder(model)
