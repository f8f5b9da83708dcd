"""The baseline: the target alone, one token a pass, through the same cache, attention and graphs as RadarDecoder."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from radar.engine.capture import Mailbox, capture, capture_each, on_stream
from radar.engine.choose import choose_engine
from radar.engine.held import HeldText
from radar.engine.prefill import Prefill, chunk_sizes
from radar.engine.sampler import Sampler
from radar.generation.base import Decoder, end_token_ids
from radar.generation.processing import HostProcessing
from radar.generation.request import Request
from radar.metrics import Round, Stopwatch
from radar.target.model import TargetModel, default_max_length

__all__ = ["AutoregressiveDecoder"]


class AutoregressiveDecoder(Decoder):
    """Plain decoding with RadarDecoder's interface: the denominator of every speed-up.

    Args:
        model: a loaded transformers causal language model of a supported family.
        tokenizer: its tokenizer; None for token ids only.
        max_length: tokens that the cache holds, prompt and output together; None: 2048, or the model's positions.
        engine, compile: as for RadarDecoder.
    """

    def __init__(
        self,
        model: Any,
        *,
        tokenizer: Any = None,
        max_length: int | None = None,
        engine: str | None = None,
        compile: bool = True,
    ) -> None:
        max_length = default_max_length(model) if max_length is None else max_length
        self.engine_name = choose_engine(engine, model.device)
        graphs = self.engine_name == "graph"
        self.target = TargetModel(
            model,
            max_length=max_length,
            max_rows=max(chunk_sizes(model.device)),
            tap_layers=(),
            compile=graphs and compile,
        )
        self._token = torch.zeros((1, 1), dtype=torch.int64, device=self.target.device)
        self._one = torch.ones(1, dtype=torch.int64, device=self.target.device)
        self._sampler = Sampler(1, self.target.vocab_size, self.target.device)
        self._prefill = Prefill(self.target)
        self._held = HeldText()
        self._processing: HostProcessing | None = None
        self._launched = False
        self._step_graph: torch.cuda.CUDAGraph | None = None
        self._chunks: dict[int, Callable[[], object]] | None = None  # of a prompt, by rows
        if graphs:
            with torch.inference_mode():
                self._capture()
        super().__init__(
            model,
            tokenizer=tokenizer,
            eos_token_ids=end_token_ids(model, tokenizer),
            max_length=max_length,
            vocab_size=self.target.vocab_size,
        )

    def _capture(self) -> None:
        stream = torch.cuda.Stream(self.target.device)
        self._chunks = capture_each(self._prefill.chunk, self._prefill.sizes, stream)
        on_stream(stream, self._step)
        self._step_graph = capture(self._step, stream)
        self._mailbox = Mailbox(self._token)

    def _step(self) -> None:
        """One token: capture-ready."""
        logits, _ = self.target.verify(*self.target.chain(self._token))
        self.target.advance(1)
        self._choose(logits)

    def _choose(self, logits: Tensor) -> None:
        self._token.copy_(self._sampler.sample(logits, self.target.cache.length[:, None]))
        self._sampler.commit(self._token, self._one)

    def _start(self, request: Request) -> Round:
        watch, prompt = Stopwatch(), request.input_ids
        self._launched = False
        self._processing = request.processing
        reused = self._held.begin(prompt, self.target.cache, reuse=request.reuse_prefix)
        ids = torch.tensor([prompt], device=self.target.device)
        self._sampler.set(request.sampling)
        self._sampler.start(ids)
        self._prefill.run(ids, self._chunks, start=reused)
        result = Round([], is_prefill=True, num_prompt_tokens=len(prompt), num_reused_tokens=reused)
        if self._processing is None:
            self._choose(self._prefill.logits[:, None])
        else:
            self._choose_on_host(self._processing, self._prefill.logits, prompt, result)
        result.tokens = self._token[0].tolist()
        self._held.add([*prompt[reused + 1 :], *result.tokens], pending=0)
        watch.lap("prefill")
        result.seconds = watch.seconds
        return result

    def _choose_on_host(self, processing: HostProcessing, logits: Tensor, text: list[int], result: Round) -> None:
        """Take the token behind `text` from its logits [1, V], processed."""
        token, scores = processing.choose(self._sampler, logits[0], text)
        self._token.fill_(token)
        self._sampler.commit(self._token, self._one)
        result.logits, result.scores = logits.float(), scores[None]

    def _release(self) -> None:
        self._processing = None

    def _ahead(self) -> None:
        if self._step_graph is not None and not self._launched and self._processing is None:
            self._launched = True
            self._step_graph.replay()
            self._mailbox.send()

    def _round(self) -> Round:
        watch, result = Stopwatch(), Round([])
        if self._processing is not None:
            self.target.cache.set_window(len(self._held.ids))
            logits, _ = self.target.verify(*self.target.chain(self._token))
            self.target.advance(1)
            self._choose_on_host(self._processing, logits[:, 0], self._held.ids, result)
            result.tokens = self._token[0].tolist()
        elif self._step_graph is not None:
            self._ahead()
            result.tokens = self._mailbox.read()[0]
            self._launched = False
        else:
            self.target.cache.set_window(len(self._held.ids))
            self._step()
            result.tokens = self._token[0].tolist()
        self._held.add(result.tokens, pending=0)
        watch.lap("verify")
        result.seconds = watch.seconds
        return result
