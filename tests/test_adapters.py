"""Models with PEFT adapters: what changes weights is decoded with, as it is set at the call; the rest is refused."""

import pytest
import torch
from fakes import hf_greedy, tiny_draft, tiny_target
from rows_decoders import Gate, make_rows, tokens_of

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.errors import UsageError

peft = pytest.importorskip("peft")

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]
PROMPTS = [PROMPT, [*PROMPT, 7, 7], PROMPT[:3], [11, 12]]
TREE = TreeConfig(total_tokens=12, max_calls=3, tree_top_k=4)
KINDS = [FixedDepth(2), None, "plain"]  # EAGLE-3, RADAR as it stops by itself, plain decoding


def lora(seed, *modules, **options):
    torch.manual_seed(seed)  # of the weights, which are made behind this
    return peft.LoraConfig(
        r=4, target_modules=list(modules) or ["q_proj", "up_proj"], init_lora_weights=False, task_type="CAUSAL_LM",
        **options,
    )  # fmt: skip


def with_two(stock=None, **options):
    """A model with adapters "one" and "two", the first in use."""
    model = peft.get_peft_model(tiny_target() if stock is None else stock, lora(1), adapter_name="one")
    model.add_adapter("two", lora(2, "v_proj", "down_proj", **options))
    return model.eval()


def make(model, policy, rows=1):
    options = {"max_length": 96, "max_batch_size": rows}
    if policy == "plain":
        return AutoregressiveDecoder(model, **options)
    return RadarDecoder(model, draft=tiny_draft(), policy=policy, tree=TREE, fallback=False, **options)


def states(model):
    """Sets a model's adapters in one way after the other."""
    yield "one"
    model.set_adapter("two")
    yield "two"
    with model.disable_adapter():
        yield "none"
    yield "two"
    model.add_weighted_adapter(["one", "two"], [0.7, -1.0], "both", combination_type="cat")
    model.set_adapter("both")
    yield "both"
    model.set_adapter("one")
    model.merge_adapter()
    yield "one"
    model.unmerge_adapter()
    model.base_model.set_adapter(["one", "two"])
    yield "both at once"
    model.set_adapter("one")
    model.delete_adapter("two")
    model.add_adapter("two", lora(5, "v_proj", "down_proj"))
    model.set_adapter("two")
    yield "another two"


def test_each_text_is_of_the_adapters_that_are_set():
    """One decoder of each kind through all states; the prefix of the text before is at hand each time."""
    model = with_two()
    stock, seen = model.get_base_model(), {}
    ours = [make(model, policy) for policy in KINDS]
    for name in states(model):
        expected = hf_greedy(stock, PROMPT, 12)
        for decoder in ours:
            assert decoder.generate(PROMPT, max_new_tokens=12, reuse_prefix=True).token_ids == expected, name
        assert seen.setdefault(name, expected) == expected
    assert len(set(map(tuple, seen.values()))) == len(seen)


@pytest.mark.parametrize("policy", KINDS[1:], ids=["radar", "plain"])
def test_texts_that_share_rounds_are_of_the_adapters_that_are_set(policy):
    model = with_two()
    stock, decoder = model.get_base_model(), make(model, policy, rows=4)
    for _ in states(model):
        texts = decoder.generate(PROMPTS, max_new_tokens=8, reuse_prefix=True)
        assert [text.token_ids for text in texts] == [hf_greedy(stock, prompt, 8) for prompt in PROMPTS]
