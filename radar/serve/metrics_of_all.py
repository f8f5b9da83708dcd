"""The metrics of all replicas, each sample with the name of its replica."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from prometheus_client import CollectorRegistry, Counter, Metric, generate_latest
from prometheus_client.registry import Collector

__all__ = ["MetricsOfAll"]


class MetricsOfAll:
    """Of an ingress.

    Attributes:
        http: counts its answers. Those of the replicas are among them, and are not told again.
    """

    def __init__(self) -> None:
        self.http = Counter("radar_http_requests", "Answers by status.", ["status"], registry=None)

    def render(self, replicas: Iterable[tuple[str, Sequence[Metric]]]) -> bytes:
        """The exposition, format 0.0.4, of the replicas' names and figures."""
        families: dict[str, Metric] = {}
        for replica, metrics in replicas:
            for metric in metrics:
                family = families.setdefault(metric.name, Metric(metric.name, metric.documentation, metric.type))
                family.samples += [one._replace(labels={**one.labels, "replica": replica}) for one in metric.samples]
        families |= {metric.name: metric for metric in self.http.collect()}
        registry = CollectorRegistry()
        registry.register(_Collected(families.values()))
        return generate_latest(registry)


class _Collected(Collector):
    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        """See `Collector`."""
        return self._families
