"""Models with PEFT adapters: what changes weights is decoded with, as it is set at the call; the rest is refused."""

import pytest
import torch
from fakes import hf_greedy, tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.errors import UsageError

peft = pytest.importorskip("peft")

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def with_lora(model, name="one", seed=1):
    torch.manual_seed(seed)
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM")
    return peft.get_peft_model(model, config, adapter_name=name)


def decoders(model):
    options = {"max_length": 128}
    tree = TreeConfig(total_tokens=20, max_calls=5, tree_top_k=4)
    draft = tiny_draft()
    return [
        RadarDecoder(model, draft=draft, policy=FixedDepth(3), tree=tree, **options),
        AutoregressiveDecoder(model, **options),
    ]


@pytest.mark.slow
def test_adapters_switched_disabled_merged_and_removed_are_seen():
    stock = tiny_target()
    without = hf_greedy(stock, PROMPT, 30)
    plain = decoders(stock)
    assert all(decoder.generate(PROMPT, max_new_tokens=30).token_ids == without for decoder in plain)
    model = with_lora(stock)
    torch.manual_seed(2)
    model.add_adapter("two", peft.LoraConfig(r=4, target_modules=["v_proj"], init_lora_weights=False))
    ours = [*plain, *decoders(model)]

    def check():
        expected = hf_greedy(stock, PROMPT, 30)
        for decoder in ours:
            assert decoder.generate(PROMPT, max_new_tokens=30, reuse_prefix=True).token_ids == expected
        return expected

    seen = [check()]
    model.set_adapter("two")
    seen.append(check())
    with model.disable_adapter():
        seen.append(check())
    model.set_adapter("one")
    assert check() == seen[0]
    model.merge_adapter()
    check()
    model.unmerge_adapter()
    check()
    assert seen[2] == without
    assert seen[0] != seen[1] != without


def test_prompt_tuning_is_refused_by_name():
    config = peft.PromptTuningConfig(num_virtual_tokens=4, task_type="CAUSAL_LM")
    model = peft.get_peft_model(tiny_target(), config)
    with pytest.raises(UsageError, match="prompt tuning, whose virtual tokens have no ids"):
        AutoregressiveDecoder(model, max_length=64)
