"""Build the corpus and the tokenizer of the embedded default pair, and of the laboratory's.

`python -m bench.lab.data --data FOLDER --out .lab/data`. FOLDER holds `gsm8k_train.jsonl` (MIT), `mbpp.jsonl`
(CC BY 4.0; task ids 511 to 600 are a benchmark and stay out) and `codegen.json`, `roleplay.json`, `toolformer.json`
(MIT). Python text comes from the interpreter: its standard library (PSF), sympy, networkx, numpy and torch (BSD-3).
Laboratory models, which are not given away, may read more packages: `--packages torch transformers scipy ...`.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib.util
import json
import random
import sysconfig
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers

BOS, USER, ASSISTANT, END = SPECIALS = ("<|bos|>", "<|user|>", "<|assistant|>", "<|end|>")
PACKAGES = ("sympy", "networkx", "numpy", "torch")
SKIPPED_FOLDERS = {"site-packages", "_vendor", "third_party", "_antlr", "encodings", "__pycache__"}
CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{% if message['role'] == 'assistant' %}"
    "{{ '<|assistant|>\\n' + message['content'] + '<|end|>' }}{% else %}"
    "{{ '<|user|>\\n' + message['content'] + '\\n' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif %}"
)
Pair = tuple[str, str, str]  # source, question, answer


def chat(question: str, answer: str) -> str:
    return f"{BOS}{USER}\n{question}\n{ASSISTANT}\n{answer}{END}"


def plain(text: str) -> str:
    return f"{BOS}{text}{END}"


def _clean(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n").replace("\t", "    ").strip()


def read_pairs(folder: Path, tool_use: int) -> list[Pair]:
    """Questions and answers of every source; of the tool-use set only `tool_use` pairs, without their long preamble."""
    pairs: list[Pair] = []
    for line in (folder / "gsm8k_train.jsonl").read_text().splitlines():
        row = json.loads(line)
        pairs.append(("gsm8k", row["question"], row["answer"]))
    for line in (folder / "mbpp.jsonl").read_text().splitlines():
        row = json.loads(line)
        if not 511 <= row["task_id"] <= 600:
            pairs.append(("mbpp", row["text"], row["code"]))
    for name in ("codegen", "roleplay", "toolformer"):
        rows = json.loads((folder / f"{name}.json").read_text())
        if name == "toolformer":
            random.Random(2).shuffle(rows)
            rows = rows[:tool_use]
        for row in rows:
            question = row["instruction"].strip().splitlines()[-1] if name == "toolformer" else row["instruction"]
            pairs.append((name, question + ("\n" + row["input"] if row.get("input") else ""), row["response"]))
    cleaned = [(source, _clean(question), _clean(answer)) for source, question, answer in pairs]
    return [pair for pair in cleaned if pair[1] and pair[2]]


def documents(pairs: Iterable[Pair], seed: int) -> list[str]:
    """Chat form of every pair, and plain forms of arithmetic and code, so that bare prompts are continued as well."""
    rng, out = random.Random(seed), []
    for source, question, answer in pairs:
        out.append(chat(question, answer))
        if source == "gsm8k" and rng.random() < 0.5:
            out.append(plain(f"{question}\n{answer}"))
        if source == "mbpp":
            comment = question.replace("\n", "\n# ")
            out += [chat(question, answer), plain(f"# {comment}\n{answer}"), plain(f'"""{question}"""\n{answer}')]
            out += [plain(answer)]
    rng.shuffle(out)
    return out


def python_files(seed: int, packages: Sequence[str] = PACKAGES) -> list[tuple[str, str]]:
    """(source, text) of readable modules: the standard library first, then the packages in random order."""
    rng, groups = random.Random(seed), []
    roots = {"stdlib": Path(sysconfig.get_path("stdlib"))}
    for name in packages:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin is not None:
            roots[name] = Path(spec.origin).parent
    for name, root in roots.items():
        files = [path for path in sorted(root.rglob("*.py")) if not SKIPPED_FOLDERS & set(path.relative_to(root).parts)]
        groups.append([(name, text) for path in files if (text := _read_module(path)) is not None])
    library, packages = groups[0], [file for group in groups[1:] for file in group]
    rng.shuffle(library)
    rng.shuffle(packages)
    return library + packages


def _read_module(path: Path) -> str | None:
    if not 400 < path.stat().st_size < 200_000:
        return None
    try:
        text = path.read_text(encoding="utf8")
    except (OSError, UnicodeDecodeError):
        return None
    tables = sum(character.isdigit() for character in text) > 0.12 * len(text)  # generated numbers teach nothing
    return None if tables or not text.isascii() else text.strip() + "\n"


def train_tokenizer(texts: Iterator[str], vocab_size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=list(SPECIALS),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 0)])
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    settings = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": BOS,
        "eos_token": END,
        "pad_token": END,
        "additional_special_tokens": [USER, ASSISTANT],
        "clean_up_tokenization_spaces": False,
        "model_max_length": 4096,
        "chat_template": CHAT_TEMPLATE,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(settings, indent=2) + "\n")


def encode(tokenizer: Tokenizer, texts: list[str], cap: int | None = None) -> tuple[np.ndarray, int]:
    """Concatenated ids (uint16) of the first documents that fit into `cap` tokens, and how many documents they are."""
    parts, total, count = [], 0, 0
    for start in range(0, len(texts), 256):
        for encoding in tokenizer.encode_batch(texts[start : start + 256], add_special_tokens=False):
            if cap is not None and total >= cap:
                break
            parts.append(np.array(encoding.ids, dtype=np.uint16))
            total, count = total + len(encoding.ids), count + 1
    return np.concatenate(parts), count


def heldout_prompts(
    held: list[Pair], train: list[Pair], modules: list[str], tokenizer: Tokenizer
) -> list[dict[str, object]]:
    rng = random.Random(5)
    pairs = held + rng.sample(train, min(len(train), 450))
    rows: list[dict[str, object]] = [{"prompt": pair[1], "chat": True, "source": pair[0]} for pair in pairs]
    for text in modules[:300]:
        ids = tokenizer.encode(text, add_special_tokens=False).ids[: rng.randint(40, 120)]
        rows.append({"prompt": tokenizer.decode(ids), "chat": False, "source": "python"})
    rng.shuffle(rows)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True, help="folder of the instruction files")
    parser.add_argument("--out", type=Path, default=Path(".lab/data"))
    parser.add_argument("--python-tokens", type=int, default=17_000_000)
    parser.add_argument(
        "--packages", nargs="+", default=list(PACKAGES), help="those that are not installed are left out"
    )
    parser.add_argument("--tool-use", type=int, default=800)
    parser.add_argument("--vocab", type=int, default=4096, help="size of the tokenizer; at most 65536")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)

    pairs = read_pairs(args.data, args.tool_use)
    random.Random(1).shuffle(pairs)
    held, train = pairs[: len(pairs) // 20], pairs[len(pairs) // 20 :]
    files = python_files(3, args.packages)
    held_files = files[:: len(files) // 320][:320]
    held_set = set(map(id, held_files))
    files = [file for file in files if id(file) not in held_set]
    instruct = documents(train, 4)
    sample = [text for _, text in random.Random(6).sample(files, min(len(files), 1500))]
    tokenizer = train_tokenizer(iter([*sample, *instruct]), args.vocab)
    save_tokenizer(tokenizer, args.out / "tokenizer")

    streams, used = {}, {}
    streams["instruct"], used["instruct"] = encode(tokenizer, instruct)
    streams["instruct_val"], used["instruct_val"] = encode(tokenizer, [chat(pair[1], pair[2]) for pair in held])
    streams["python"], count = encode(tokenizer, [plain(text) for _, text in files], args.python_tokens)
    used["python"] = count
    streams["python_val"], used["python_val"] = encode(tokenizer, [plain(text) for _, text in held_files], 400_000)
    for name, stream in streams.items():
        np.save(args.out / f"{name}.npy", stream)
    prompts = heldout_prompts(held, train, [text for _, text in held_files], tokenizer)
    (args.out / "heldout_prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in prompts))

    manifest = {
        "vocab_size": tokenizer.get_vocab_size(),
        "tokens": {name: len(stream) for name, stream in streams.items()},
        "documents": used,
        "heldout_prompts": len(prompts),
        "pairs": {s: sum(pair[0] == s for pair in pairs) for s in sorted({pair[0] for pair in pairs})},
        "python_files": {s: sum(file[0] == s for file in files[:count]) for s in ("stdlib", *args.packages)},
        "licences": {
            "stdlib": "PSF-2.0",
            "packages": "BSD-3-Clause" if set(args.packages) <= set(PACKAGES) else "each its own",
            "gsm8k": "MIT",
            "mbpp": "CC-BY-4.0",
            "GPTeacher": "MIT",
        },
        "sha256": {
            str(path.relative_to(args.out)): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(args.out.rglob("*"))
            if path.is_file() and path.name != "manifest.json"
        },
    }
    (args.out / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
    print(json.dumps({key: value for key, value in manifest.items() if key != "sha256"}))


if __name__ == "__main__":
    main()
