"""A hundred chats of a released model: plain decoding, EAGLE-3 and RADAR, one row and eight.

Not in CI: RADAR_TEST_TARGET names the model's folder, such as the one that `python tests/released.py FOLDER` makes;
RADAR_TEST_HEAD that of a head for it, else one guesses at random. RADAR_TEST_CHATS and RADAR_TEST_TOKENS take fewer.
"""

import json
import os
import time
from types import SimpleNamespace

import pytest
import torch
from hundred_chats import CHATS, answering
from released import untrained_head

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, Threshold
from radar.draft.checkpoint import load_draft
from radar.target.load import load_model, load_tokenizer

TARGET, HEAD = os.environ.get("RADAR_TEST_TARGET"), os.environ.get("RADAR_TEST_HEAD")
COUNT, TOKENS = (int(os.environ.get(f"RADAR_TEST_{name}", most)) for name, most in (("CHATS", 100), ("TOKENS", 32)))
IS_HOPPER = torch.cuda.is_available() and torch.cuda.get_device_capability() == (9, 0)

pytestmark = pytest.mark.skipif(not TARGET, reason="RADAR_TEST_TARGET names no folder")


@pytest.fixture(scope="module")
def prompts():
    tokenizer = load_tokenizer(TARGET)
    found = [tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True) for chat in CHATS]
    return [prompt["input_ids"] for prompt in found[:COUNT]]


@pytest.fixture(scope="module", autouse=True)
def answers(prompts, device):
    """`generate`'s; it works while the decoders do."""
    with answering(TARGET, prompts, TOKENS, str(device)) as found:
        yield found


@pytest.fixture(scope="module", params=[torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
def pair(request, device):
    """Model and head of one type, and plain decoding's texts once they are known."""
    if request.param is torch.bfloat16 and not IS_HOPPER:
        pytest.skip("in 16 bits texts are promised on Hopper alone")
    model = load_model(TARGET, device=device, dtype=request.param)
    if HEAD:
        draft = load_draft(HEAD, target_hidden_size=model.config.hidden_size, device=device, dtype=request.param)
    else:
        draft = untrained_head(model).to(device, request.param)
    return SimpleNamespace(model=model, draft=draft, plain=[])


def decoded(decoder, prompts, name, pair):
    begun = time.perf_counter()
    if decoder.max_batch_size > 1:
        found = decoder.generate(prompts, max_new_tokens=TOKENS, temperature=0.0)
    else:
        found = [decoder.generate(prompt, max_new_tokens=TOKENS, temperature=0.0) for prompt in prompts]
    figures = {"kind": name, "rows": decoder.max_batch_size, "type": str(pair.model.dtype), "texts": len(found)}
    print(json.dumps(figures | {"seconds": round(time.perf_counter() - begun, 2), "engine": decoder.engine_name}))
    return [text.token_ids for text in found]


@pytest.mark.parametrize("rows", [1, 8])
def test_all_decoders_say_the_same_and_in_float32_what_generate_says(rows, pair, prompts, answers):
    options = {"max_length": 512, "max_batch_size": rows}
    plain = decoded(AutoregressiveDecoder(pair.model, **options), prompts, "plain", pair)
    pair.plain = pair.plain or plain
    assert plain == pair.plain  # one row's
    ours = RadarDecoder(pair.model, draft=pair.draft, policy=FixedDepth(5), fallback=False, **options)
    assert decoded(ours, prompts, "EAGLE-3", pair) == plain
    ours.policy = Threshold()
    assert decoded(ours, prompts, "RADAR", pair) == plain
    if pair.model.dtype is torch.float32:
        assert plain == answers()
    assert len({tuple(text) for text in plain}) > 0.9 * len(plain)
