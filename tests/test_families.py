"""Which targets decode, and that the others are refused by name: nothing is decoded wrongly in silence."""

import pytest
import transformers
from fakes import DEVICE, FAMILIES, hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, SamplingParams, TreeConfig
from radar.target.families import SUPPORTED_MODEL_TYPES

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6, 5, 3]
TREE = TreeConfig(total_tokens=20, max_calls=4)
SMALL = {
    "vocab_size": 17, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 5, "num_attention_heads": 4,
    "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 256, "bos_token_id": None,
    "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
OTHERS = {
    "mixtral": ("Mixtral", {"num_local_experts": 2}),
    "qwen2_moe": ("Qwen2Moe", {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8,
                               "shared_expert_intermediate_size": 8}),
    "qwen3_moe": ("Qwen3Moe", {"num_experts": 2, "num_experts_per_tok": 1, "moe_intermediate_size": 8}),
    "gemma": ("Gemma", {}),
    "gemma2": ("Gemma2", {}),
    "gemma3_text": ("Gemma3", {}),
    "phi3": ("Phi3", {}),
    "gpt2": ("GPT2", {"n_embd": 32, "n_head": 4, "n_layer": 2}),
    "olmo2": ("Olmo2", {}),
    "gpt_oss": ("GptOss", {"num_local_experts": 2, "num_experts_per_tok": 1}),
}  # fmt: skip


def decoder(model, **options):
    return RadarDecoder(model, draft=tiny_draft(), policy=FixedDepth(3), tree=TREE,
                        **{"max_length": 100} | options)  # fmt: skip


def test_the_supported_families_are_those_tested():
    assert set(FAMILIES) == set(SUPPORTED_MODEL_TYPES)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_supported_family_decodes(family):
    model = tiny_target(family)
    ours, plain = decoder(model), AutoregressiveDecoder(model, max_length=100)
    assert ours.generate(PROMPT, max_new_tokens=50).token_ids == hf_greedy(model, PROMPT, 50)
    sampling = SamplingParams(temperature=1.0, seed=2)
    texts = [d.generate(PROMPT, max_new_tokens=50, sampling=sampling).token_ids for d in (ours, plain)]
    assert texts[0] == texts[1]


@pytest.mark.parametrize("family", OTHERS)
def test_another_family_is_refused_with_the_list(family):
    name, extra = OTHERS[family]
    config_class = getattr(transformers, f"{name}TextConfig", None) or getattr(transformers, f"{name}Config")
    model_class = getattr(transformers, f"{name}ForCausalLM", None) or getattr(transformers, f"{name}LMHeadModel")
    config = config_class(**SMALL | extra)
    assert config.model_type == family
    model = model_class(config).eval().to(DEVICE)
    message = f"unsupported target architecture '{family}'; supported: {', '.join(SUPPORTED_MODEL_TYPES)}"
    for make in (decoder, lambda m: AutoregressiveDecoder(m, max_length=100)):
        with pytest.raises(ValueError, match=message):
            make(model)


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("mistral", {"sliding_window": 64}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 0}),
        ("qwen2", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 3}),
        ("qwen3", {"use_sliding_window": True, "sliding_window": 64, "max_window_layers": 2, "head_dim": 16}),
    ],
)
def test_a_sliding_window_decodes_up_to_the_window_and_is_refused_beyond(family, settings):
    model = tiny_target(family, **settings)
    with pytest.raises(ValueError, match=r"sliding window of 64 tokens.*max_length=64 or less, got 65"):
        decoder(model, max_length=65)
    ours = decoder(model, max_length=64)
    assert ours.generate(PROMPT).token_ids == hf_greedy(model, PROMPT, 54)
    beyond = hf_greedy(model, PROMPT, 180)
    wide = tiny_target(family, **settings | {"sliding_window": 400})
    assert hf_greedy(wide, PROMPT, 180) != beyond  # the window matters: ignoring it would be wrong


def test_a_window_that_is_off_does_not_count():
    model = tiny_target("qwen2", use_sliding_window=False, sliding_window=16)
    assert decoder(model).generate(PROMPT, max_new_tokens=60).token_ids == hf_greedy(model, PROMPT, 60)


def test_a_model_on_several_devices_is_refused():
    model = tiny_target()
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": 1}
    with pytest.raises(ValueError, match="spread over several devices"):
        decoder(model)
