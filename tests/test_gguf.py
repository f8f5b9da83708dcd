"""GGUF files as targets: model and tokenizer of one file, decoded as plain weights."""

import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_target
from quantised_files import write_gguf
from transformers import modeling_gguf_pytorch_utils

from radar import FixedDepth, RadarDecoder, TreeConfig
from radar.cli.main import main
from radar.draft.checkpoint import save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft
from radar.errors import UsageError
from radar.target.load import load_model

pytest.importorskip("gguf")
pytest.importorskip("accelerate")
PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


@pytest.fixture(scope="module")
def model():
    return tiny_target(vocab_size=64, hidden_size=64, intermediate_size=96, num_hidden_layers=3)


@pytest.fixture(scope="module")
def head(model, tmp_path_factory):
    torch.manual_seed(0)
    draft = Eagle3Draft(DraftConfig.of_target(model.config, draft_vocab_size=60)).eval()
    draft.set_draft_vocabulary(torch.arange(60))
    folder = tmp_path_factory.mktemp("head")
    save_draft(draft, folder)
    return folder


def load(file, **options):
    return load_model(str(file), device=DEVICE, **{"dtype": None, "progress": False, **options})


@pytest.mark.parametrize("kind", ["F32", "Q8_0"])
def test_a_file_is_model_and_tokenizer(kind, model, head, tmp_path):
    file = write_gguf(model, tmp_path / "tiny.gguf", kind)
    decoder = RadarDecoder.from_pretrained(
        file, head, policy=FixedDepth(2), tree=TreeConfig(total_tokens=12, max_calls=3, tree_top_k=4),
        tap_layers=(0, 1, 2), max_length=64, fallback=False, device=DEVICE,
    )  # fmt: skip
    assert (decoder.model.dtype, decoder.model.device.type) == (torch.float32, DEVICE.type)
    assert getattr(decoder.model.config, "quantization_config", None) is None  # not left in its blocks
    text = decoder.generate(PROMPT, max_new_tokens=20, eos_token_id=None)
    ours, theirs = decoder.model.model.layers[1].mlp.up_proj.weight, model.model.layers[1].mlp.up_proj.weight
    assert torch.equal(ours, theirs) == (kind == "F32")
    torch.testing.assert_close(ours, theirs, atol=0.005, rtol=0)  # half of the largest weight's 127th
    decoder.model.generation_config.eos_token_id = None
    assert text.token_ids == hf_greedy(decoder.model, PROMPT, 20)
    assert decoder.tokenizer("CBAB")["input_ids"] == [3, 2, 61]


def test_a_command_takes_the_file(model, head, tmp_path, capsys):
    file = write_gguf(model, tmp_path / "tiny.gguf")
    arguments = ["--target", str(file), "--draft", str(head), "--max-new-tokens", "4", "--device", str(DEVICE)]
    assert main(["generate", "CABAEIBF", *arguments]) == 0
    assert capsys.readouterr().out.strip()


def test_a_folder_may_be_called_like_a_file(model, tmp_path):
    """As transformers has it."""
    folder = tmp_path / "model.gguf"
    model.save_pretrained(folder)
    found = load(folder)
    assert all(map(torch.equal, found.state_dict().values(), model.to(DEVICE).state_dict().values()))


def test_files_that_are_none_or_of_other_architectures_are_refused_by_name(model, tmp_path, monkeypatch):
    for architecture, message in (("foo", "architecture foo is not supported"), ("mamba", "'mamba'.*keeps a state")):
        with pytest.raises(UsageError, match=message):
            load(write_gguf(model, tmp_path / f"{architecture}.gguf", architecture=architecture))
    with pytest.raises(UsageError, match="no GGUF file at"):
        load(tmp_path / "missing.gguf")
    (tmp_path / "text.gguf").write_text("no model at all")
    with pytest.raises(UsageError, match="is no GGUF file of an architecture"):
        load(tmp_path / "text.gguf")
    whole = write_gguf(model, tmp_path / "whole.gguf").read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(UsageError, match=r"cut\.gguf"):
        load(tmp_path / "cut.gguf")
    monkeypatch.setattr(modeling_gguf_pytorch_utils, "is_gguf_available", lambda: False)
    with pytest.raises(UsageError, match=r'pip install "radar-decoding\[gguf\]"'):
        load(tmp_path / "whole.gguf")
