"""The runner of several texts at once: rows join and leave between rounds, and draft as deep as their own verdicts."""

from __future__ import annotations

from collections.abc import Hashable, Iterator

import torch

from radar.config import TreeConfig
from radar.draft.base import Drafter
from radar.engine.base import EngineRequest
from radar.engine.prefill import Prefill
from radar.engine.steps import RoundSteps
from radar.metrics import Round
from radar.policy.base import StopPolicy
from radar.target.model import TargetModel

__all__ = ["RowsEngine"]


class RowsEngine:
    """Rounds for the texts in the rows of a batch; the host calls the steps.

    What a row says is what it would say alone: its tree, its noise and its attention depend on its own text.

    Args:
        target, drafter: of `batch_size` rows, on one device.
        policy: decides for each row.
        config: shape of the trees.

    Attributes:
        steps: of a round.
    """

    name = "eager"

    def __init__(self, target: TargetModel, drafter: Drafter, policy: StopPolicy, config: TreeConfig) -> None:
        self.target = target
        self.steps = RoundSteps(target, drafter, policy, config)
        rows = range(len(target.cache.length))
        self._samplers = [self.steps.sampler.row(row) for row in rows]
        self._targets = [target.row(row) for row in rows]
        self._drafters = [drafter.row(row) for row in rows]
        self._prefill = Prefill(self._targets[0], self._drafters[0])
        self._lengths = [0 for _ in rows]  # tokens of the texts, as far as the host knows
        self._free = list(rows)
        self._rows: dict[Hashable, int] = {}
        self.steps.active.zero_()

    @property
    def has_room(self) -> bool:
        """See `BatchEngine`."""
        return bool(self._free)

    def admit(self, key: Hashable, request: EngineRequest) -> Iterator[Round | None]:
        """See `BatchEngine`."""
        row = self._rows[key] = self._free.pop(0)
        prompt, sampler, prefill = request.input_ids, self._samplers[row], self._prefill
        ids = torch.tensor([prompt], device=self.target.device)
        prefill.target, prefill.drafter = self._targets[row], self._drafters[row]
        for _ in prefill.chunked(ids):
            yield None
        sampler.set(request.sampling)
        sampler.start(ids)  # now: rounds of other rows leave something in every row's history
        token = sampler.sample(prefill.logits[:, None], self._targets[row].cache.length[:, None])
        sampler.commit(token, torch.ones_like(token[:, 0]))
        self.steps.load(token, prefill.taps, row)
        self.steps.active[row] = True
        self._lengths[row] = len(prompt) + 1
        yield Round(token[0].tolist(), is_prefill=True, num_prompt_tokens=len(prompt))

    def round(self) -> dict[Hashable, Round]:
        """See `BatchEngine`."""
        steps, config = self.steps, self.steps.config
        longest = max(self._lengths)
        steps.target.cache.set_window(longest + config.total_tokens)
        steps.drafter.cache.set_window(longest + steps.drafter.num_scratch_rows)
        steps.begin()
        for _ in range(config.max_calls - 1):
            if bool(steps.stop().all()):  # the host asks: one flag per draft call
                break
            steps.step()
        made, result = {}, steps.finish().tolist()
        for key, row in self._rows.items():
            if self._lengths[row]:
                calls, accept_length, *tokens = result[row]
                tokens = tokens[: accept_length + 1]
                self._lengths[row] += len(tokens)
                made[key] = Round(tokens, calls, accept_length, num_draft_tokens=steps.num_drafted(calls))
        return made

    def release(self, key: Hashable) -> None:
        """See `BatchEngine`."""
        row = self._rows.pop(key)
        self.steps.active[row] = False
        self._lengths[row] = 0
        self._free.append(row)

    def refresh(self) -> bool:
        """See `BatchEngine`."""
        raise NotImplementedError
