"""Released models say what `generate` says. Not in CI: `make test-real` brings the models."""

import pytest
import torch
from released import RELEASED, load_released, untrained_head

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig
from radar.cli.decoders import default_prompts
from radar.tools.prompts import load_prompts

TOKENS = {"smollm2": 16, "gemma3": 8}


@pytest.fixture(scope="module", params=RELEASED)
def released(request, tmp_path_factory):
    """Model, tokenizer, chats, and what `generate` answers."""
    if not RELEASED[request.param].parts:
        pytest.skip("make test-real installs the models")
    model, tokenizer = load_released(request.param, tmp_path_factory.mktemp(request.param))
    chats = [[{"role": "user", "content": line.text}] for line in load_prompts(default_prompts(), limit=20)]
    found = []
    for chat in chats:
        ids = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True)
        with torch.inference_mode():
            whole = model.generate(**ids, do_sample=False, max_new_tokens=TOKENS[request.param])
        found.append(whole[0, ids["input_ids"].shape[1] :].tolist())
    return model, tokenizer, chats, found, TOKENS[request.param]


@pytest.mark.parametrize("rows", [1, 4])
@pytest.mark.parametrize("kind", ["plain", "radar"])
def test_chats_are_answered_as_generate_does(kind, rows, released):
    model, tokenizer, chats, expected, tokens = released
    options = {"tokenizer": tokenizer, "max_length": 768, "max_batch_size": rows}
    if kind == "plain":
        decoder = AutoregressiveDecoder(model, **options)
    else:
        tree = TreeConfig(total_tokens=12, tree_top_k=4, max_calls=3)
        decoder = RadarDecoder(
            model, draft=untrained_head(model), policy=FixedDepth(2), tree=tree, fallback=False, **options
        )
    texts = decoder.generate(chats, max_new_tokens=tokens, temperature=0.0)
    assert [text.token_ids for text in texts] == expected
    assert len({tuple(text.token_ids) for text in texts}) > 10
