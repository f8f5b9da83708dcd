"""Recipes of small pairs: each fits the large model that it stands for."""

from types import SimpleNamespace

import pytest
import torch

from bench.lab.recipes import RECIPES, SIZES
from bench.lab.target import build
from bench.lab.widen import _problems
from radar import DraftConfig


@pytest.mark.parametrize(("name", "size"), [("embedded", "embedded"), *((name, "lab") for name in RECIPES)])
def test_every_recipe_fits_its_large_model(name, size):
    recipe, sizes = RECIPES[name], SIZES[size]
    vocabulary = range(4096 if size == "embedded" else 16384)  # stands for the tokenizer: its length is read
    tokenizer = type("Tokenizer", (), {"__len__": lambda _: len(vocabulary), "bos_token_id": 0, "eos_token_id": 3})()
    with torch.device("meta"):
        config = build(recipe, sizes, tokenizer).config
    assert config.num_attention_heads // config.num_key_value_heads == recipe.group
    assert sizes.heads % recipe.group == 0
    if name != "embedded":  # the others have their large model's ratio
        assert recipe.group == recipe.geometry.heads // recipe.geometry.kv_heads
    head = DraftConfig(
        hidden_size=sizes.hidden, intermediate_size=sizes.draft_intermediate, num_attention_heads=sizes.heads,
        num_key_value_heads=sizes.heads // recipe.group, head_dim=sizes.head_dim, vocab_size=len(vocabulary),
        draft_vocab_size=sizes.draft_vocabulary, target_hidden_size=sizes.hidden,
    )  # fmt: skip
    assert _problems(config, SimpleNamespace(config=head), recipe.geometry) == []
