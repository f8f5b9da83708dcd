"""The start of a text, the same for every engine: what is held of the prompt, the rest of its pass, the first token."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from radar.draft.base import Drafter
from radar.engine.base import EngineRequest
from radar.engine.logprobs import Watch
from radar.engine.prefill import Prefill
from radar.engine.prefix_cache import PrefixCache
from radar.engine.sampler import Sampler
from radar.engine.scored import Scored
from radar.metrics import Round, Stopwatch
from radar.target.fingerprint import Fingerprint
from radar.target.model import TargetModel

__all__ = ["Admission"]


class Admission:
    """Takes prompts into the caches.

    Args:
        target, drafter: as for `Prefill`.
        sampler: of the engine.
        profile: wait for the GPU, so that the time of the prompt's pass is true.

    Attributes:
        prefix: the text in the caches.
        prefill: runs prompts.
        chunks: what runs its chunks, by rows; None: Python does.
        token: [B, 1] the first token of the text admitted last.
    """

    def __init__(
        self, target: TargetModel, drafter: Drafter | None, sampler: Sampler, *, profile: bool = False
    ) -> None:
        self.target, self.drafter, self.sampler = target, drafter, sampler
        self.prefix = PrefixCache()
        self.prefill = Prefill(target, drafter)
        self.chunks: dict[int, Callable[[], object]] | None = None
        self._profile = profile
        self._prints = self._fingerprints()

    def admit(self, request: EngineRequest) -> Round:
        """The prompt's pass and the first token, which the sampler's history holds then."""
        watch, prompt, prefill = Stopwatch(synchronize=self._profile), request.input_ids, self.prefill
        reused = self.prefix.begin(prompt, self.target.cache, reuse=request.reuse_prefix)
        ids = torch.tensor([prompt], device=self.target.device)
        self.sampler.set(request.sampling)
        self.sampler.start(ids)
        prefill.run(ids, self.chunks, start=reused)
        result = Round([], is_prefill=True, num_prompt_tokens=len(prompt), num_reused_tokens=reused)
        if request.processing is None:
            self.token: Tensor = self.sampler.sample(prefill.logits[:, None], self.target.cache.length[:, None])
        else:
            chosen, scores = request.processing.choose(self.sampler, prefill.logits[0], prompt)
            self.token = torch.tensor([[chosen]], device=self.target.device)
            result.logits, result.scores = prefill.logits.float(), scores[None]
        self.sampler.commit(self.token, torch.ones_like(self.token[:, 0]))
        logprobs = Watch(Scored(prefill.logits, torch.zeros_like(self.token), self.token), [request])
        result.tokens = self.token[0].tolist()
        logprobs.tell([result])
        self.prefix.add([*prompt[reused + 1 :], *result.tokens], pending=1)
        watch.lap("prefill")
        result.seconds = watch.seconds
        return result

    def rehearse(self) -> None:
        """Launch what `admit` does, for prompts of all kinds."""
        try:
            self._rehearse()
        finally:  # as it was, whatever failed
            self.prefill.count.fill_(1)
            self.prefill.known.zero_()
            self.target.cache.reset()

    def _rehearse(self) -> None:
        prefill, most = self.prefill, 2 * max(self.prefill.sizes)
        for rows in prefill.sizes:
            prefill.chunk(rows)
        # the rows of long ones reach kernels as numbers, of which Triton tells multiples of 16 from others
        for length in (most + 1, most + 16):
            if prefill.large is not None and length <= self.target.max_length:
                prefill.run(torch.zeros((1, length), dtype=torch.int64, device=self.target.device))
        self.sampler.start(prefill.tokens[:1])
        self.sampler.sample(prefill.logits[:, None], self.target.cache.length[:, None])

    def refresh(self) -> bool:
        """See `Engine.refresh`."""
        now = self._fingerprints()
        if [found.layout for found in now] != [known.layout for known in self._prints]:
            return False
        if now != self._prints:
            self._prints = now
            self.prefix.forget()
        return True

    def _fingerprints(self) -> list[Fingerprint]:
        return [part.refresh() for part in (self.target, self.drafter) if part is not None]
