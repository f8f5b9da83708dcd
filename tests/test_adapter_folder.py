"""Folders of adapters: loaded whole with the model that they name, or refused by what is wrong with them."""

import json

import peft
import pytest
import torch
from fakes import DEVICE, hf_greedy, tiny_draft, tiny_target
from safetensors.torch import load_file, save_file

from radar import RadarDecoder
from radar.draft.checkpoint import save_draft
from radar.errors import UsageError
from radar.target.load import load_model, load_tokenizer

PROMPT = [3, 1, 4, 1, 5, 9, 2, 6]


def lora(seed=1, **options):
    torch.manual_seed(seed)
    return peft.LoraConfig(r=4, target_modules=["q_proj"], init_lora_weights=False, task_type="CAUSAL_LM", **options)


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    folder = tmp_path_factory.mktemp("base")
    tiny_target().save_pretrained(folder)
    return folder


def loaded(folder):
    return load_model(str(folder), device=DEVICE, dtype=None)


def saved(base, folder, config=None, name="default"):
    """A folder with an adapter, and the model with it."""
    model = peft.get_peft_model(loaded(base), config or lora(), adapter_name=name)
    model.save_pretrained(folder)
    return model


@pytest.mark.parametrize(
    "options",
    [{}, {"use_dora": True}, {"modules_to_save": ["lm_head", "embed_tokens"]}, {"trainable_token_indices": [3]}],
    ids=lambda options: next(iter(options), "lora"),
)
def test_an_adapter_is_loaded_with_its_base_model(options, base, tmp_path):
    torch.manual_seed(1)
    made = peft.get_peft_model(loaded(base), lora(**options))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if parameter.requires_grad and "lora_A" not in name and "lora_B" not in name:
                parameter.mul_(-1.3).add_(0.1)
    made.save_pretrained(tmp_path / "adapter")
    save_draft(tiny_draft(), tmp_path / "head")
    found = loaded(tmp_path / "adapter")
    assert not any(module.training for module in found.modules())
    decoder = RadarDecoder(found, draft=tmp_path / "head", max_length=64)
    expected = hf_greedy(made.eval().get_base_model(), PROMPT, 12)
    assert decoder.generate(PROMPT, max_new_tokens=12).token_ids == expected != hf_greedy(loaded(base), PROMPT, 12)


def test_of_several_adapters_the_folder_of_one_is_taken(base, tmp_path):
    model = saved(base, tmp_path / "unused")
    model.add_adapter("other", lora(2))
    model.save_pretrained(tmp_path)  # the default one at the top
    expected = {"": hf_greedy(model.get_base_model(), PROMPT, 8)}
    model.set_adapter("other")
    expected["other"] = hf_greedy(model.get_base_model(), PROMPT, 8)
    assert {place: hf_greedy(loaded(tmp_path / place), PROMPT, 8) for place in expected} == expected
    model.delete_adapter("default")
    model.add_adapter("third", lora(3))
    model.save_pretrained(tmp_path / "named")  # none at the top
    with pytest.raises(UsageError, match=r"holds several adapters, .* such as '.*other' \(there are other, third\)"):
        loaded(tmp_path / "named")


def test_the_tokenizer_is_the_adapters_or_the_base_models(base, tmp_path, monkeypatch):
    saved(base, tmp_path)
    taken = []
    monkeypatch.setattr("radar.target.load.AutoTokenizer.from_pretrained", taken.append)
    load_tokenizer(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text("{}")
    load_tokenizer(str(tmp_path))
    assert taken == [str(base), str(tmp_path)]


def change(folder, **values):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def no_base(folder):
    change(folder, base_model_name_or_path=None)


def base_is_not_there(folder):
    change(folder, base_model_name_or_path=str(folder / "nothing"))


def base_is_an_adapter(folder):
    change(folder, base_model_name_or_path=str(folder))


def other_layers(folder):
    change(folder, target_modules=["q_proj", "v_proj"])


def other_rank(folder):
    change(folder, r=8)


def layers_that_the_model_lacks(folder):
    tensors = load_file(path := folder / "adapter_model.safetensors")
    more = {name.replace(".layers.0.", ".layers.9."): value.clone() for name, value in tensors.items()}
    save_file(tensors | more, path)


def cut_off(folder):
    path = folder / "adapter_model.safetensors"
    path.write_bytes(path.read_bytes()[:500])


def no_weights(folder):
    (folder / "adapter_model.safetensors").unlink()


def no_config(folder):
    (folder / "adapter_config.json").write_text("[")


WRONG = [
    (no_base, "does not say which model the adapter was trained on: put"),
    (base_is_not_there, "the base model '.*nothing' of the adapter in .* cannot be loaded: put"),
    (base_is_an_adapter, "is a folder that holds an adapter itself: merge that one"),
    (other_layers, r"10 tensors are missing \(base_model.*v_proj"),
    (other_rank, "does not go into its base model: take the model that it was trained on"),
    (layers_that_the_model_lacks, r"2 tensors are unknown to the model \(base_model.*layers.9"),
    (cut_off, "does not go into its base model"),
    (no_weights, "does not go into its base model"),
    (no_config, "adapter_config.json is no adapter's that this PEFT can read"),
]


@pytest.mark.parametrize(("spoil", "message"), WRONG, ids=lambda value: getattr(value, "__name__", ""))
def test_a_folder_that_is_not_whole_is_refused(spoil, message, base, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    saved(base, tmp_path)
    spoil(tmp_path)
    with pytest.raises(UsageError, match=message):
        loaded(tmp_path)


def test_prompt_tuning_is_refused_before_the_model_is_loaded(tmp_path):
    peft.PromptTuningConfig(
        num_virtual_tokens=4, task_type="CAUSAL_LM", base_model_name_or_path="nobody/nothing"
    ).save_pretrained(tmp_path)
    with pytest.raises(UsageError, match="is prompt tuning, whose virtual tokens"):
        loaded(tmp_path)


def test_without_peft_the_error_says_what_to_install(base, tmp_path, monkeypatch):
    saved(base, tmp_path)
    monkeypatch.setattr("radar.target.adapter_folder.find_spec", lambda _: None)
    with pytest.raises(UsageError, match='peft is missing: pip install "peft'):
        loaded(tmp_path)
