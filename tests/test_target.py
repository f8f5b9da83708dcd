"""The adaptor on stock models: trees equal causal decoding of every path, and the model is left as it was."""

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
from fakes import DEVICE, FAMILIES, hf_greedy, tiny_target
from torch import nn
from trees import random_tree

from radar.target.model import TargetModel, default_tap_layers
from radar_kernels.reference_tree import pack_bits

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def tensor(values):
    return torch.tensor(values, device=DEVICE)


def chain(target, tokens):
    found = target.verify_chain(tensor([tokens]))
    target.advance(len(tokens))
    return found


@pytest.mark.parametrize("family", FAMILIES)
def test_every_path_equals_causal_decoding(family, rng):
    model = tiny_target(family)
    target = TargetModel(model, max_length=128, max_rows=64)
    tokens, parents, depths, reach = random_tree(rng, 40, 12, 8)
    with torch.inference_mode():
        chain(target, PROMPT)
        logits, found = target.verify(tensor([tokens]), tensor([depths]), pack_bits(tensor([reach])))
        for node in range(40):
            path = [node]
            while path[0]:
                path.insert(0, parents[path[0]])
            plain = model(tensor([PROMPT + [tokens[i] for i in path]]), output_hidden_states=True)
            torch.testing.assert_close(logits[0, node], plain.logits[0, -1], atol=2e-4, rtol=1e-4)
            taps = torch.cat([plain.hidden_states[i][0, -1] for i in default_tap_layers(5)])
            torch.testing.assert_close(found[0, node], taps, atol=2e-4, rtol=1e-4)


def test_a_chain_has_the_words_of_its_rows():
    """Attention goes through all columns of the words that it is given."""
    target = TargetModel(tiny_target(), max_length=200, max_rows=160)
    for rows, words in ((1, 1), (64, 1), (65, 2), (160, 3)):
        _, depths, ancestors = target.chain(torch.zeros((1, rows), dtype=torch.int64))
        assert depths.tolist() == [list(range(rows))]
        assert ancestors.shape == (1, rows, words)
        assert [int(word) & (2**64 - 1) for word in ancestors[0, 0]] == [1, *[0] * (words - 1)]
        last = sum((int(word) & (2**64 - 1)) << 64 * w for w, word in enumerate(ancestors[0, -1]))
        assert last == 2**rows - 1


def test_a_visible_sibling_would_be_seen(rng):
    """The comparison above has teeth: one wrong bit moves the logits far beyond its tolerance."""
    target = TargetModel(tiny_target(), max_length=64, max_rows=16)
    ids, positions = tensor([[1, 2, 3]]), tensor([[0, 1, 1]])
    with torch.inference_mode():
        right, _ = target.verify(ids, positions, tensor([[[1], [3], [5]]]))
        wrong, _ = target.verify(ids, positions, tensor([[[1], [3], [7]]]))
    assert torch.equal(right[:, :2], wrong[:, :2])
    assert (right[:, 2] - wrong[:, 2]).abs().max() > 0.05


def test_committed_branch_continues_like_a_prompt():
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=16)
    with torch.inference_mode():
        chain(target, PROMPT)
        # root 7 with children 8 and 9, grandchild 10 of 9: keep 7, 9, 10
        bits = tensor([[[0b0001], [0b0011], [0b0101], [0b1101]]])
        target.verify(tensor([[7, 8, 9, 10]]), tensor([[0, 1, 1, 2]]), bits)
        target.cache.commit(tensor([[0, 2, 3, 0]]), tensor([3]))
        ours = chain(target, [11])[0][0, -1]
        plain = model(tensor([[*PROMPT, 7, 9, 10, 11]])).logits[0, -1]
    torch.testing.assert_close(ours, plain, atol=2e-4, rtol=1e-4)


def test_the_model_is_left_as_it_was():
    model = tiny_target()
    before = hf_greedy(model, PROMPT, 12)
    attention = model.config._attn_implementation
    target = TargetModel(model, max_length=64, max_rows=16)
    with torch.inference_mode():
        chain(target, PROMPT)
    assert model.config._attn_implementation == attention
    assert hf_greedy(model, PROMPT, 12) == before
    del target
    gc.collect()
    assert not any(layer._forward_hooks for layer in model.model.layers)


def test_the_attention_setting_is_restored_after_an_error():
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=16)
    attention = model.config._attn_implementation

    def fail(*_):
        raise RuntimeError("no memory, say")

    model.model.layers[1].mlp.forward = fail
    with pytest.raises(RuntimeError, match="no memory"):
        target.verify_chain(tensor([[1]]))
    assert model.config._attn_implementation == attention


def test_weights_go_with_the_last_decoder():
    """By counting, without a collection: a cycle would hold a large model while the next one is loaded."""
    model = tiny_target()
    target = TargetModel(model, max_length=32, max_rows=8)
    target.verify_chain(torch.tensor([[1, 2, 3]], device=DEVICE))
    weight = weakref.ref(model.get_decoder().layers[0].self_attn.q_proj.weight)
    gc.collect()
    gc.disable()
    try:
        del model, target
        assert weight() is None
    finally:
        gc.enable()


@pytest.mark.parametrize(("kind", "limit"), [("dynamic", 512), ("longrope", 64)])
def test_embeddings_that_look_at_the_longest_position_are_refused_where_they_move(kind, limit):
    factors = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4} if kind == "longrope" else {}
    parameters = {"rope_type": kind, "rope_theta": 10000.0, "factor": 2.0, **factors}
    model = tiny_target(rope_parameters={**parameters, "original_max_position_embeddings": 64})
    with pytest.raises(
        ValueError, match=rf"type '{kind}'.*beyond {limit}.*max_length={limit - 8} or less, got {limit - 7}"
    ):
        TargetModel(model, max_length=limit - 7, max_rows=8)
    TargetModel(model, max_length=limit - 8, max_rows=8)
    with pytest.raises(ValueError, match="use one of default, linear"):
        TargetModel(model, max_length=20, max_rows=limit)


def test_unknown_embeddings_are_refused():
    model = tiny_target()
    model.config.rope_parameters["rope_type"] = "of_tomorrow"
    with pytest.raises(ValueError, match="rotary embedding is of type 'of_tomorrow'; known: default, linear"):
        TargetModel(model, max_length=32, max_rows=8)


def test_types_that_nothing_computes_in_are_refused():
    with pytest.raises(ValueError, match=r"must be float32, float16 or bfloat16, got torch\.float64"):
        TargetModel(tiny_target().double(), max_length=32, max_rows=8)


def test_taps_can_be_overridden():
    model = tiny_target()
    target = TargetModel(model, max_length=64, max_rows=16, tap_layers=(0, 4))
    with torch.inference_mode():
        _, taps = chain(target, PROMPT)
        states = model(tensor([PROMPT]), output_hidden_states=True).hidden_states
    torch.testing.assert_close(taps, torch.cat((states[0], states[4]), -1), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("taps", [(2, 5), (-1,), (9,)])
def test_taps_that_do_not_exist_are_refused(taps):
    with pytest.raises(ValueError, match=r"tap_layers must be hidden_states indices from 0 to 4"):
        TargetModel(tiny_target(), max_length=64, max_rows=16, tap_layers=taps)


@pytest.mark.parametrize("taps", [3, "1,2", (1, 2.0), (True, 2)], ids=repr)
def test_taps_are_indices(taps):
    with pytest.raises(ValueError, match=r"tap_layers must be hidden_states indices, such as \(2, 16, 29\), got "):
        TargetModel(tiny_target(), max_length=64, max_rows=16, tap_layers=taps)


def test_unsupported_architecture_is_refused_by_name():
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, vocab_size=17))
    with pytest.raises(ValueError, match=r"unsupported target architecture 'gpt2'; supported: llama, mistral"):
        TargetModel(model, max_length=64, max_rows=16)


def test_more_positions_than_the_model_has_are_refused():
    with pytest.raises(ValueError, match="max_length 1000 is more than the 512 positions that the model was made for"):
        TargetModel(tiny_target(), max_length=1000, max_rows=16)


def test_a_model_on_several_devices_is_refused():
    model = tiny_target()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match="several devices"):
        TargetModel(model, max_length=64, max_rows=16)


def test_threads_with_a_decoder_each_take_turns_on_a_model():
    model = tiny_target(num_hidden_layers=6)
    targets = [TargetModel(model, max_length=64, max_rows=8) for _ in range(4)]
    texts = [torch.arange(4 + i, device=DEVICE)[None] for i in range(4)]  # of different lengths: a mix-up shows

    def run(target, text):
        with torch.inference_mode():
            return target.verify_chain(text)

    expected = [run(target, text) for target, text in zip(targets, texts, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(20):
            for found, wanted in zip(pool.map(run, targets, texts), expected, strict=True):
                assert all(map(torch.equal, found, wanted))


def test_a_module_that_was_replaced_is_used():
    model = tiny_target(num_hidden_layers=6)
    before = TargetModel(model, max_length=64, max_rows=8)
    with torch.inference_mode():
        before.verify_chain(tensor([PROMPT]))
    model.set_output_embeddings(nn.Linear(model.config.hidden_size, model.config.vocab_size, bias=False).to(DEVICE))
    model.model.layers[1] = type(model.model.layers[1])(model.config, 1).eval().to(DEVICE)  # behind it is the first tap
    ids = tensor([PROMPT])
    target = TargetModel(model, max_length=64, max_rows=8)
    with torch.inference_mode():
        out = model(ids, output_hidden_states=True, use_cache=False)
        logits, taps = target.verify(*target.chain(ids))
    torch.testing.assert_close(logits, out.logits, atol=1e-5, rtol=1e-5)
    wanted = torch.cat([out.hidden_states[layer] for layer in target.tap_layers], dim=-1)
    torch.testing.assert_close(taps, wanted, atol=1e-5, rtol=1e-5)


def test_a_model_in_16_bits_may_score_in_32():
    """Its last norm and output layer are then of another type than the layers, which run as ours."""
    model = tiny_target().to(torch.bfloat16)
    model.model.norm.float()
    model.lm_head.float()
    target = TargetModel(model, max_length=64, max_rows=16)
    target.bound.fuse()
    with torch.inference_mode():
        assert target.verify_chain(torch.tensor([PROMPT], device=DEVICE))[0].dtype == torch.float32
