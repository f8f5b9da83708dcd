"""Tiny models with LoRA adapters, their prompts and decoders."""

import peft
import torch
from fakes import tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar_kernels.reference_canonical import PAGE

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
LONG = [(7 * i + i // 3) % 17 for i in range(PAGE + 2)]
PROMPTS = [PROMPT, [*PROMPT, 7, 7], PROMPT[:3], LONG]
TREE = TreeConfig(total_tokens=12, max_calls=3, tree_top_k=4)
KINDS = [FixedDepth(2), None, "plain"]  # EAGLE-3, RADAR as it stops by itself, plain decoding


def lora(seed, *modules, **options):
    torch.manual_seed(seed)  # of the weights, which are made behind this
    return peft.LoraConfig(
        r=4, target_modules=list(modules) or ["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
        **options,
    )  # fmt: skip


def with_two():
    """A model with adapters "one" and "two", the first in use."""
    model = peft.get_peft_model(tiny_target(), lora(1), adapter_name="one")
    model.add_adapter("two", lora(2, "v_proj", "down_proj"))
    return model.eval()


def make(model, policy, rows=1):
    options = {"max_length": 96, "max_batch_size": rows}
    if policy == "plain":
        return AutoregressiveDecoder(model, **options)
    return RadarDecoder(model, draft=tiny_draft(), policy=policy, tree=TREE, fallback=False, **options)
