"""A released chat model says what `generate` says. Not in CI: `make test-real` brings the model."""

import pytest
import torch
from released import load_released, released_file, untrained_head

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.cli.decoders import default_prompts
from radar.tools.prompts import load_prompts

pytestmark = pytest.mark.skipif(released_file() is None, reason="make test-real installs the model")
TOKENS = 24


@pytest.fixture(scope="module")
def released():
    return load_released()


@pytest.fixture(scope="module")
def expected(released):
    """Chats, and what `generate` answers."""
    model, tokenizer = released
    chats = [[{"role": "user", "content": line.text}] for line in load_prompts(default_prompts(), limit=20)]
    found = []
    for chat in chats:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            whole = model.generate(**ids, do_sample=False, max_new_tokens=TOKENS)
        found.append((chat, whole[0, ids["input_ids"].shape[1] :].tolist()))
    return found


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", ["plain", "radar"])
def test_chats_are_answered_as_generate_does(kind, rows, released, expected):
    model, tokenizer = released
    options = {"tokenizer": tokenizer, "max_length": 768, "max_batch_size": rows}
    if kind == "plain":
        decoder = AutoregressiveDecoder(model, **options)
    else:
        tree = TreeConfig(total_tokens=12, tree_top_k=4, max_calls=3)
        decoder = RadarDecoder(
            model, draft=untrained_head(model), policy=FixedDepth(2), tree=tree, fallback=False, **options
        )
    texts = decoder.generate([chat for chat, _ in expected], max_new_tokens=TOKENS, temperature=0.0)
    assert [text.token_ids for text in texts] == [ids for _, ids in expected]
    assert len({tuple(text.token_ids) for text in texts}) > 10
