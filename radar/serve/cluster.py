"""Replicas as Ray Serve runs them."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fastapi import FastAPI
from ray import serve

from radar.serve.ingress import make_ingress
from radar.serve.logs import to_stderr
from radar.serve.models import ServedModel
from radar.serve.replica import Replica
from radar.serve.server import GRACE
from radar.serve.settings import Limits

__all__ = ["Size", "bound_ingress", "bound_replicas"]

ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"
BACKOFF = 0.05  # seconds between looks for room, at most: a row that is free waits so long
MANY = 100_000  # what nobody limits


@dataclass(frozen=True, kw_only=True)
class Size:
    """How many replicas, and of what.

    Attributes:
        replicas: at least.
        most: at most; with more than `replicas`, as many as requests need to have a row each.
        rows: texts that a replica decodes at once.
        gpus: of a replica.
        cpus: of a replica, which Ray keeps apart and torch uses as threads.
        starts: that may fail before the application has.
    """

    replicas: int
    most: int
    rows: int
    gpus: int
    cpus: int
    starts: int = 20


def bound_replicas(
    make_models: Callable[[Mapping[str, Any]], Sequence[ServedModel]], options: Mapping[str, Any], limits: Limits,
    size: Size,
) -> serve.Application:  # fmt: skip
    """The replicas alone.

    A replica takes as many requests as it has rows, and a few that follow at once. What comes beside goes to the
    replica that is next for its conversation and has room; if none has, it waits, however many do: the ingress has
    refused those that are too many (`radar.serve.admission`), and what it has taken in is not refused behind that.

    Args:
        make_models: a function that replicas can import; makes the decoders.
        options: its argument.
        limits: of requests.
        size: of all.
    """
    beside = min(limits.max_waiting, max(1, size.rows // 4))
    scaling: dict[str, Any] = {"num_replicas": size.replicas}
    if size.most > size.replicas:
        bounds = {"min_replicas": size.replicas, "max_replicas": size.most, "target_ongoing_requests": size.rows}
        scaling = {"autoscaling_config": bounds}
    deployment = serve.deployment(
        name="Replica",
        max_ongoing_requests=size.rows + beside,
        max_constructor_retry_count=size.starts,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=limits.shutdown_seconds + GRACE,
        ray_actor_options={"num_cpus": size.cpus, "num_gpus": size.gpus},
        request_router_config={
            "request_router_class": ROUTER,
            "request_router_kwargs": {"num_fallback_replicas": size.most},
            "max_backoff_s": BACKOFF,
        },
        **scaling,
    )(Replica)
    return deployment.bind(make_models, dict(options), limits)


@serve.ingress()
class Ingress:
    """`make_ingress` in a process of Ray, behind its proxies."""

    def __init__(self, replicas: Any, limits: Limits, keys: Sequence[str], rows: int) -> None:
        to_stderr()
        self._arguments = replicas, limits, keys, rows

    def __serve_build_asgi_app__(self) -> FastAPI:
        replicas, limits, keys, rows = self._arguments
        return make_ingress(replicas, limits=limits, keys=keys, rows=rows)


def bound_ingress(replicas: serve.Application, limits: Limits, keys: Sequence[str], size: Size) -> serve.Application:
    """The whole application, for Ray's proxies to serve.

    Args:
        replicas: from `bound_replicas`.
        limits: of requests.
        keys: of the API; empty: it is open.
        size: of the replicas.
    """
    deployment = serve.deployment(
        name="Ingress",
        max_ongoing_requests=MANY,
        graceful_shutdown_wait_loop_s=0.5,
        graceful_shutdown_timeout_s=limits.shutdown_seconds + GRACE,
        ray_actor_options={"num_cpus": 0},
    )(Ingress)
    return deployment.bind(replicas, limits, list(keys), size.rows * size.most)
