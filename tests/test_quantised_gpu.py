"""SmolLM2 as libraries quantise it, on a card: RADAR's texts are plain decoding's, in graphs; their speed is printed.

`RADAR_SMOLLM2` names the model's folder, in 16 bits; `RADAR_SMOLLM2_HEAD` one of a head for it, without which a head
that has learned nothing drafts. Not in CI: each kind prints a line of JSON (`pytest -s`).
"""

import functools
import json
import logging
import os
import statistics

import pytest
import torch
from released import untrained_head
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, TorchAoConfig

from radar import AutoregressiveDecoder, RadarDecoder
from radar.cli.decoders import default_prompts
from radar.target.fingerprint import fingerprint
from radar.target.quantised import describe
from radar.tools.prompts import load_prompts

TARGET, HEAD = os.environ.get("RADAR_SMOLLM2"), os.environ.get("RADAR_SMOLLM2_HEAD")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not (TARGET and torch.cuda.is_available()), reason="needs a CUDA device and RADAR_SMOLLM2"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning"),
]
TOKENS = 32
TIMED = 5


def torchao(name, **options):
    quantization = pytest.importorskip("torchao.quantization")
    return TorchAoConfig(getattr(quantization, name)(**options))


def bitsandbytes(**options):
    pytest.importorskip("bitsandbytes")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # that inputs are cast, at every product
    return BitsAndBytesConfig(**options)


FOUR = functools.partial(bitsandbytes, load_in_4bit=True, bnb_4bit_quant_type="nf4")
EIGHT = functools.partial(bitsandbytes, load_in_8bit=True, llm_int8_threshold=0.0)
INT4 = {"group_size": 64, "int4_packing_format": "tile_packed_to_4d"}
KINDS = {
    "none float32": (lambda: None, torch.float32),
    "none bfloat16": (lambda: None, torch.bfloat16),
    "torchao int8 float32": (lambda: torchao("Int8WeightOnlyConfig"), torch.float32),
    "torchao int8 bfloat16": (lambda: torchao("Int8WeightOnlyConfig"), torch.bfloat16),
    "torchao float8 bfloat16": (lambda: torchao("Float8WeightOnlyConfig"), torch.bfloat16),
    "torchao int4 bfloat16": (lambda: torchao("Int4WeightOnlyConfig", **INT4), torch.bfloat16),
    "bitsandbytes nf4 float32": (FOUR, torch.float32),
    "bitsandbytes nf4 bfloat16": (FOUR, torch.bfloat16),
    "bitsandbytes int8 float16": (EIGHT, torch.float16),
}


@pytest.fixture(scope="module")
def chats():
    tokenizer = AutoTokenizer.from_pretrained(TARGET)
    chats = [[{"role": "user", "content": line.text}] for line in load_prompts(default_prompts(), limit=20)]
    return [
        tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=True)["input_ids"] for chat in chats
    ]


def answers(decoder, chats, tokens=TOKENS):
    return [decoder.generate(ids, max_new_tokens=tokens, temperature=0.0).token_ids for ids in chats]


@pytest.mark.parametrize("kind", KINDS)
def test_texts_are_plain_decodings(kind, chats):
    how, dtype = KINDS[kind]
    model = AutoModelForCausalLM.from_pretrained(
        TARGET, dtype=dtype, quantization_config=how(), device_map={"": torch.device("cuda:0")}
    )
    head = HEAD or untrained_head(model).to(model.device, dtype)
    plain = AutoregressiveDecoder(model, max_length=768)
    radar = RadarDecoder(model, draft=head, max_length=768, fallback=False)
    answers(plain, chats[:1]), answers(radar, chats[:1])
    before = fingerprint(model)
    texts, drafted = answers(plain, chats), answers(radar, chats)
    assert fingerprint(model) == before
    assert plain.engine_name.startswith("graph")
    assert radar.engine_name.startswith("graph")
    accepted = radar.metrics.mean_acceptance_length
    speeds = {"plain": [], "radar": []}
    for chat in chats[:TIMED]:  # interleaved; a text a prompt
        for name, decoder in (("plain", plain), ("radar", radar)):
            out = decoder.generate(chat, max_new_tokens=4 * TOKENS, temperature=0.0, eos_token_id=())
            speeds[name].append(out.metrics.tokens_per_second)
    same = sum(map(list.__eq__, texts, drafted))
    line = {
        "kind": kind, "is": describe(model), "equal": same, "of": len(chats), "trained": HEAD is not None,
        "mean_acceptance_length": round(accepted, 2), "engine": radar.engine_name,
        **{f"{name}_tokens_per_second": round(statistics.median(found)) for name, found in speeds.items()},
        **{f"{name}_spread": [round(min(found)), round(max(found))] for name, found in speeds.items()},
    }  # fmt: skip
    print(json.dumps(line))
    assert len({tuple(text) for text in texts}) > len(chats) // 2
    assert same >= (len(chats) if kind.startswith("none") else len(chats) // 2)
    if dtype == torch.float32:
        assert drafted == texts
        prompt = torch.tensor([chats[0]], device=model.device)
        with torch.inference_mode():
            whole = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), do_sample=False, max_new_tokens=TOKENS
            )
        assert whole[0, len(chats[0]) :].tolist() == texts[0]
    if HEAD:
        assert statistics.median(speeds["radar"]) > statistics.median(speeds["plain"])
