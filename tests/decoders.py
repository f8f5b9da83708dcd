"""Decoders of tiny models, and a tokenizer that reads in words."""

from fakes import tiny_draft, tiny_target

from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder, TreeConfig

PROMPT = [5, 3, 2, 8]


class WordTokenizer:
    """Token t reads as the word `wt `, but some tokens are halves of a character, and token 0 is special."""

    eos_token_id = None

    def __call__(self, text):
        return {"input_ids": [int(word[1:]) for word in text.split()]}

    def decode(self, ids, skip_special_tokens=True):
        halves = {3: b"\xc3", 8: b"\xa9"}
        data = b"".join(b"" if i == 0 else halves.get(int(i), f"w{int(i)} ".encode()) for i in ids)
        return data.decode("utf-8", errors="replace")


def make(policy=None, tokenizer=None, **options):
    tree = TreeConfig(total_tokens=20, max_calls=8)
    options = {"max_length": 128, "tree": tree, "fallback": False} | options  # what a round does does not vary
    return RadarDecoder(
        tiny_target(), draft=tiny_draft(), policy=policy or FixedDepth(4), tokenizer=tokenizer, **options
    )


def both(**options):
    return [make(**options), AutoregressiveDecoder(tiny_target(), max_length=128, tokenizer=options.get("tokenizer"))]
