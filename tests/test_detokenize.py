"""The pieces of a stream are the text, whatever the tokenizer does behind its last token."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from radar.generation.detokenize import Detokenizer, decode_as_is, text_of

WORDS = [
    "a",
    "tree",
    "n",
    "n't",
    "'",
    "'s",
    "'m",
    "'ve",
    "'re",
    ".",
    ",",
    "?",
    "!",
    "t",
    "s",
    "v",
    "r",
    "\u00e9",
    "\u6728",
]
BYTES = [f"<0x{value:02X}>" for value in range(256)]
SPECIAL = ["<s>", "</s>"]


def wrap(model, decoder, **options):
    tokenizer = Tokenizer(model)
    tokenizer.decoder = decoder
    tokenizer.add_special_tokens([AddedToken(name, special=True) for name in SPECIAL])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", **options)


def byte_level(**options):
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    return wrap(models.BPE({letter: i for i, letter in enumerate(letters)}, []), decoders.ByteLevel(), **options)


def metaspace(clean):
    pieces = [*WORDS, *(f"\u2581{word}" for word in WORDS), "\u2581", *BYTES, "<unk>"]
    decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    model = models.Unigram([(piece, -1.0) for piece in pieces], unk_id=len(pieces) - 1, byte_fallback=True)
    return wrap(model, decoder, clean_up_tokenization_spaces=clean)


def llama():
    """As Llama 2's and Mistral's: a byte run that is no text turns into as many replacement characters."""
    pieces = [*WORDS, *(f"\u2581{word}" for word in WORDS), "\u2581", *BYTES]
    decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return wrap(models.BPE({piece: i for i, piece in enumerate(pieces)}, [], byte_fallback=True), decoder)


def word_piece(cleanup, clean):
    pieces = ["[UNK]", *WORDS, *(f"##{word}" for word in WORDS)]
    model = models.WordPiece({piece: i for i, piece in enumerate(pieces)}, unk_token="[UNK]")
    return wrap(model, decoders.WordPiece(cleanup=cleanup), clean_up_tokenization_spaces=clean)


KINDS = {
    "byte-level BPE": byte_level(),
    "byte-level BPE, clean-up asked for": byte_level(clean_up_tokenization_spaces=True),
    "byte-level BPE, clean-up forced": byte_level(
        clean_up_tokenization_spaces=True, clean_up_tokenization_spaces_for_bpe_even_though_it_will_corrupt_output=True
    ),
    "Unigram": metaspace(False),
    "Unigram with clean-up": metaspace(True),
    "BPE with byte fallback": llama(),
    "WordPiece": word_piece(False, False),
    "WordPiece with both clean-ups": word_piece(True, True),
    "WordPiece with clean-up": word_piece(False, True),
}


@pytest.mark.parametrize("kind", KINDS)
@settings(max_examples=80, deadline=None)
@given(data=st.data())
def test_pieces_are_the_text(kind, data):
    tokenizer = KINDS[kind]
    token = st.integers(0, len(tokenizer) - 1)
    likely = [i for i in range(len(tokenizer)) if tokenizer.convert_ids_to_tokens(i) not in BYTES]
    parts = data.draw(st.lists(st.lists(token | st.sampled_from(likely), max_size=4), max_size=12))
    ids = [i for part in parts for i in part]
    whole = tokenizer.decode(ids, skip_special_tokens=True)
    assert text_of(ids, tokenizer) == whole
    stream = Detokenizer(tokenizer)
    pieces = [stream.push(part) for part in parts]
    assert whole.startswith("".join(pieces))  # nothing was sent that had to be taken back
    assert "".join(pieces) + stream.finish() == whole


@settings(max_examples=150, deadline=None)
@given(st.text(alphabet=" .,?!'ntmsver", max_size=30), st.lists(st.integers(1, 4), min_size=30, max_size=30))
def test_any_spaces_and_marks_are_cleaned_as_in_one_piece(text, sizes):
    """Whatever order and number: a rule of clean-up may make room for the next one."""
    tokenizer = KINDS["byte-level BPE, clean-up forced"]
    ids = tokenizer.convert_tokens_to_ids(["\u0120" if c == " " else c for c in text])
    stream, pieces = Detokenizer(tokenizer), []
    for size in sizes:
        pieces.append(stream.push(ids[:size]))
        ids = ids[size:]
    assert "".join(pieces) + stream.finish() == tokenizer.clean_up_tokenization(text)


def test_text_is_not_held_longer_than_it_must():
    tokenizer = KINDS["Unigram with clean-up"]
    ids = tokenizer.convert_tokens_to_ids(["\u2581tree", "\u2581.", "\u2581a", "\u2581tree", "\u2581n't", "\u2581a"])
    stream = Detokenizer(tokenizer)
    assert [stream.push([i]) for i in ids] == ["tree", ".", " a", " tree", "n't", " a"]
    assert stream.finish() == ""


def test_bytes_wait_for_the_end_of_their_run():
    tokenizer = KINDS["BPE with byte fallback"]
    run = tokenizer.convert_tokens_to_ids(["\u2581a", "<0xC3>", "<0xA9>", "</s>", "<0xFF>", "\u2581tree"])
    stream = Detokenizer(tokenizer)
    assert [stream.push([i]) for i in run] == ["a", "", "", "", "", "\ufffd\ufffd\ufffd tree"]


def test_a_clean_up_of_its_own_waits_for_the_end():
    tokenizer = metaspace(True)
    tokenizer.clean_up_tokenization = lambda text: text.replace(" tree", "TREE")
    stream = Detokenizer(tokenizer)
    ids = tokenizer.convert_tokens_to_ids(["\u2581a", "\u2581tree"])
    assert stream.push(ids) == ""
    assert stream.finish() == tokenizer.decode(ids) == "aTREE"


def test_stop_strings_see_spaces_as_they_are():
    tokenizer = KINDS["Unigram with clean-up"]
    ids = tokenizer.convert_tokens_to_ids(["\u2581a", "\u2581."])
    assert (tokenizer.decode(ids), decode_as_is(tokenizer)(ids)) == ("a.", "a .")
