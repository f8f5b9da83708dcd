"""Log-probabilities of the tokens of some texts: computed on the device behind a round, and their way to the host."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from radar.engine.base import EngineRequest
from radar.engine.scored import Scored
from radar.metrics import Round, TokenLogprob

__all__ = ["Watch"]


class Watch:
    """Log-probabilities of one pass, on their way to the host, which does not wait for them until they are told.

    They are the model's own, before penalties, biases, temperature and filters. A pass that nobody watches costs
    nothing.

    Args:
        scored: by the pass, whose kernels have been enqueued on the current stream.
        requests: of the texts in the first rows, which say who watches.
    """

    def __init__(self, scored: Scored | None, requests: Iterable[EngineRequest]) -> None:
        counts = {row: one.logprobs for row, one in enumerate(requests) if one.logprobs is not None}
        self._counts = counts
        if not counts:
            return
        assert scored is not None
        self._length = scored.tokens.shape[1]
        places = torch.cat([scored.places[row] for row in counts])  # an index by numbers would wait for the device
        tokens = torch.cat([scored.tokens[row] for row in counts]).clamp(min=0)  # without a token the text fails anyway
        logits = scored.logits[places]
        likely = logits.topk(min(max(counts.values()), logits.shape[1])).indices
        ids = torch.cat([tokens[:, None], likely], dim=1)
        logits = logits.float()
        values = logits.gather(1, ids) - logits.logsumexp(dim=1, keepdim=True)
        self._sent: torch.cuda.Event | None = None
        if values.is_cuda:
            ids, values = _to_host(ids), _to_host(values)
            self._sent = torch.cuda.Event()
            self._sent.record()
        self._ids, self._values = ids, values

    def tell(self, made: Sequence[Round]) -> None:
        """Give the rows' rounds theirs; waits for the device."""
        if not self._counts:
            return
        if self._sent is not None:
            self._sent.synchronize()
        ids, values = self._ids.tolist(), self._values.tolist()
        for place, (row, count) in enumerate(self._counts.items()):
            begin = place * self._length
            found = zip(ids[begin:], values[begin:], made[row].tokens, strict=False)
            made[row].logprobs = [
                TokenLogprob(token, value[0], list(zip(likely[1 : count + 1], value[1 : count + 1], strict=True)))
                for likely, value, token in found
            ]


def _to_host(tensor: Tensor) -> Tensor:
    return torch.empty_like(tensor, device="cpu", pin_memory=True).copy_(tensor, non_blocking=True)
