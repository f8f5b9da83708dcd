"""What is no stock model of its family is refused, and norms of ours round as stock ones."""

import pytest
import tiny_families
import torch
from fakes import DEVICE, tiny_target
from test_families import PROMPT, decoder
from tiny_families import tiny_family
from transformers import AutoConfig

from radar.draft.config import DraftConfig
from radar.target.load import load_model
from radar.target.norms import FusedNorms
from radar.target.running import Owner, running
from radar.train.draft_target import FrozenTarget


@pytest.mark.skipif(DEVICE.type == "cuda", reason="PyTorch sums in another order there")
@pytest.mark.parametrize("name", ["gpt_oss", "gemma2", "gemma4_text", "phi3", "granite"])
@torch.inference_mode()
def test_a_norm_of_ours_has_the_bits_of_the_stock_one_in_16_bits(name):
    """How it rounds, which no sum in float32 can tell."""
    model, owner = tiny_family(name).bfloat16(), Owner()
    ours = FusedNorms(model, owner)
    ours.enter()
    for norm in ours._entered:
        x = 3 * torch.randn(64, len(norm.weight), device=DEVICE).bfloat16()
        with running(owner, None):
            found = norm(x)
        assert torch.equal(found, type(norm).forward(norm, x))
    assert ours._entered
    ours.leave()


def test_attention_that_asks_no_interface_is_refused():
    class Own(type(tiny_target().model.layers[0].self_attn)):
        def forward(self, hidden_states, **_):
            return self.o_proj(self.q_proj(hidden_states)), None

    model = tiny_target()
    model.model.layers[2].self_attn.__class__ = Own
    with pytest.raises(ValueError, match="4 of the target's 5 layers attend by transformers' attention interface"):
        decoder(model).generate(PROMPT, max_new_tokens=4)


def test_configs_whose_masks_are_not_what_attention_is_told_are_refused():
    with pytest.raises(ValueError, match="use_sliding_window=False and layers of type 'sliding_attention'"):
        decoder(tiny_family("smollm3", use_sliding_window=False))
    with pytest.raises(ValueError, match="this llama model attends in both directions"):
        decoder(tiny_family("llama3", is_causal=False))


def test_a_config_of_another_model_than_the_weights_is_refused(tmp_path):
    """Where transformers would decode with random weights."""
    model = tiny_target()
    model.save_pretrained(tmp_path)
    load_model(str(tmp_path), device=torch.device("cpu"), dtype=None)
    model.config.num_hidden_layers += 1
    model.config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"not of one model: 9 tensors are missing \(model.layers.5"):
        load_model(str(tmp_path), device=torch.device("cpu"), dtype=None)


@pytest.mark.parametrize("name", sorted({*tiny_families.OTHERS, "llama3"}))
def test_a_head_can_be_trained_for_every_family(name):
    model = tiny_family(name)
    assert FrozenTarget(model, (1, 2)).taps == (1, 2)
    head = DraftConfig.of_target(model.config, draft_vocab_size=13)
    assert head.num_attention_heads % head.num_key_value_heads == 0


def test_a_type_that_does_not_decode_is_told_before_its_weights_are_loaded(tmp_path):
    AutoConfig.for_model("mixtral").save_pretrained(tmp_path)  # and no weights
    with pytest.raises(ValueError, match=r"unsupported target architecture 'mixtral' \(its modules are like"):
        load_model(str(tmp_path), device=torch.device("cpu"), dtype=None)
