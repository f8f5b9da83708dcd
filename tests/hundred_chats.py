"""A hundred chats, and what transformers' `generate` answers to them, in processes of their own."""

import multiprocessing
import os
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from itertools import product

import torch
from transformers import AutoModelForCausalLM

__all__ = ["CHATS", "answering"]

_ASKED = (
    "What is {}?", "Write two lines of verse about {}.", "List three facts about {}.", "Explain {} to a child.",
    "Who would need {}, and why?", "Write a Python function that has to do with {}.", "Name something like {}.",
    "Translate '{}' into French and use it in a sentence.", "Is {} older than the wheel? Argue.", "Tell a story: {}.",
)  # fmt: skip
_ABOUT = (
    "a lighthouse", "prime numbers", "bread", "the moon", "a contract", "photosynthesis", "chess", "a broken clock",
    "12 apples shared by 5 people", "sleep",
)  # fmt: skip
CHATS = [[{"role": "user", "content": asked.format(about)}] for asked, about in product(_ASKED, _ABOUT)]


@contextmanager
def answering(folder, prompts, tokens, device):
    """Begins to answer prompts [P] of ids one by one, in float32; a function that waits for the answers' ids."""
    workers = max(1, min(4, (os.cpu_count() or 1) // 3))
    shares = [prompts[start::workers] for start in range(workers)]
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        begun = [pool.submit(_generate, folder, share, tokens, device) for share in shares]

        def answers():
            found = [None] * len(prompts)
            for start, share in enumerate(begun):
                found[start::workers] = share.result()
            return found

        yield answers


@torch.inference_mode()
def _generate(folder, prompts, tokens, device):
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).to(device).eval()
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt], device=device)
        options = {"do_sample": False, "max_new_tokens": tokens, "pad_token_id": 0}
        found.append(model.generate(ids, attention_mask=torch.ones_like(ids), **options)[0, len(prompt) :].tolist())
    return found
