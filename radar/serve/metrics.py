"""What Prometheus scrapes. vLLM's names, where it has one, with `radar_` in place of `vllm:`."""

from __future__ import annotations

from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from radar.metrics import DecodeMetrics
from radar.serve.admission import Admission
from radar.serve.jobs import Job
from radar.serve.models import ServedModels

__all__ = ["ServerMetrics"]

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
TOKEN_SECONDS = (0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064, 0.128, 0.256, 0.512, 1, 2)
_COUNTERS = {
    "prompt_tokens": ("num_prompt_tokens", "Prompt tokens."),
    "generation_tokens": ("num_tokens", "Output tokens."),
    "prefix_cache_hits": ("num_reused_prompt_tokens", "Prompt tokens that the caches held already."),
    "spec_decode_num_drafts": ("num_spec_steps", "Rounds: target passes that verified drafts, for each text."),
    "spec_decode_num_draft_tokens": ("num_draft_tokens", "Draft tokens verified; by round, the budget of nodes."),
    "spec_decode_num_accepted_tokens": ("num_accepted_draft_tokens", "Draft tokens accepted."),
    "draft_calls": ("num_draft_calls", "Draft forwards, for each text."),
    "fallback_tokens": ("num_fallback_tokens", "Tokens of plain steps, where drafting does not pay."),
    "host_processed_tokens": ("num_host_processed_tokens", "Tokens whose scores were processed on the host."),
    "generations": ("num_generations", "Texts begun."),
}


class ServerMetrics:
    """Of one server.

    Args:
        models: whose decoders count rounds.
        admission: counts texts.
    """

    def __init__(self, models: ServedModels, admission: Admission) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(_Decoders(models, admission))
        labels, to = ["model_name"], self.registry
        self._ended = Counter("radar_request_success", "Texts by their end.", [*labels, "finished_reason"], registry=to)
        self._first = Histogram(
            "radar_time_to_first_token_seconds", "From the request on.", labels, registry=to, buckets=SECONDS
        )
        self._waited = Histogram(
            "radar_request_queue_time_seconds", "Until a text had a row.", labels, registry=to, buckets=SECONDS
        )
        self._whole = Histogram(
            "radar_e2e_request_latency_seconds",
            "From the request to the last token.",
            labels,
            registry=to,
            buckets=SECONDS,
        )
        self._token = Histogram(
            "radar_request_time_per_output_token_seconds", "Mean of a text behind its first token.", labels,
            registry=to, buckets=TOKEN_SECONDS,
        )  # fmt: skip
        self.http = Counter("radar_http_requests", "Answers by status.", ["status"], registry=to)

    def observe(self, job: Job) -> None:
        """Count a request that has ended, however it did."""
        name = job.model.name
        for text in job.texts:
            self._ended.labels(name, text.finish_reason or "abort").inc()
            if text.first is not None:
                self._first.labels(name).observe(text.first - job.began)
                self._waited.labels(name).observe(text.waited)
            if text.first is not None and text.ended is not None:
                self._whole.labels(name).observe(text.ended - job.began)
                if text.num_tokens > 1:
                    self._token.labels(name).observe((text.ended - text.first) / (text.num_tokens - 1))

    def render(self) -> bytes:
        """The exposition, format 0.0.4."""
        return generate_latest(self.registry)


class _Decoders(Collector):
    """The running totals of the decoders, read when they are asked for."""

    def __init__(self, models: ServedModels, admission: Admission) -> None:
        self._models, self._admission = models, admission

    def collect(self) -> Iterator[Metric]:
        """See `Collector`."""
        rows = self._models.first.decoder.max_batch_size
        count = self._admission.count
        yield GaugeMetricFamily("radar_num_requests_running", "Texts that have a row.", value=min(count, rows))
        yield GaugeMetricFamily("radar_num_requests_waiting", "Texts that wait for one.", value=max(0, count - rows))
        yield GaugeMetricFamily("radar_max_batch_size", "Rows: texts that share a round at most.", value=rows)
        known = {model.name: model.decoder.metrics for model in self._models}
        for name, (attribute, about) in _COUNTERS.items():
            family = CounterMetricFamily(f"radar_{name}", about, labels=["model_name"])
            for model, metrics in known.items():
                family.add_metric([model], getattr(metrics, attribute))
            yield family
        stops = CounterMetricFamily("radar_stops", "Rounds by draft calls.", labels=["model_name", "draft_calls"])
        places = CounterMetricFamily(
            "radar_spec_decode_num_accepted_tokens_per_pos",
            "Rounds that accepted a draft token at a depth, from 0.",
            labels=["model_name", "position"],
        )
        for model, metrics in known.items():
            for calls, rounds in metrics.stop_histogram.items():
                stops.add_metric([model, str(calls)], rounds)
            for place, rounds in enumerate(_by_place(metrics)):
                places.add_metric([model, str(place)], rounds)
        yield from (stops, places)


def _by_place(metrics: DecodeMetrics) -> list[int]:
    """Rounds that accepted more than 0, 1, ... draft tokens."""
    accepted = metrics.acceptance_histogram
    return [sum(n for count, n in accepted.items() if count > place) for place in range(max(accepted, default=0))]
