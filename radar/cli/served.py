"""From the options of `radar serve` to what it serves: decoders in this process, or in replicas of Ray."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from radar.cli.decoders import make_decoder
from radar.errors import UsageError
from radar.serve.app import make_app
from radar.serve.models import ServedModel
from radar.serve.settings import Limits
from radar.target.launched import launched_ranks

__all__ = ["limits_of", "replica_counts", "replica_options", "replicas_asked", "served_app", "served_models"]

EMBEDDED = "radar-embedded"
_NOT_OF_REPLICAS = ("api_key", "api_key_file", "run", "command", "debug")


def limits_of(args: argparse.Namespace) -> Limits:
    """Those that the options name."""
    names = ("max_waiting", "max_body", "max_tokens", "max_seconds", "shutdown_seconds")
    return Limits(**{name: getattr(args, name) for name in names})


@contextmanager
def served_app(args: argparse.Namespace, limits: Limits, keys: Sequence[str]) -> Iterator[Any]:
    """The app, as long as this lasts.

    Raises:
        UsageError: replicas that cannot be.
    """
    if args.replicas is None and args.max_replicas is None:
        yield make_app(served_models(vars(args)), limits=limits, keys=keys)
        return
    replicas, most, gpus = replicas_asked(args)
    from radar.serve.local_ray import local_replicas

    cpus = max(1, (os.cpu_count() or 1) // most)

    def make() -> Any:
        from radar.serve.cluster import Size, bound_replicas

        size = Size(replicas=replicas, most=most, rows=args.max_batch_size, gpus=gpus, cpus=cpus, starts=1)
        return bound_replicas(served_models, replica_options(args), limits, size)

    with local_replicas(make, cpus=most * cpus, gpus=most * gpus) as handle:
        from radar.serve.ingress import make_ingress

        yield make_ingress(handle, limits=limits, keys=keys, rows=most * args.max_batch_size)


def replica_counts(args: argparse.Namespace) -> tuple[int, int]:
    """How many replicas at least and at most. UsageError: they cannot be, on any machine."""
    replicas = args.replicas or 1
    most = args.max_replicas or replicas
    if most < replicas:
        raise UsageError(f"--max-replicas {most} is below --replicas {replicas}: take {replicas} or more")
    if args.device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device {args.device}: Ray says which GPU a replica has; take cuda or cpu")
    return replicas, most


def replicas_asked(args: argparse.Namespace) -> tuple[int, int, int]:
    """How many at least and at most, and GPUs of each. UsageError: they cannot be on this machine."""
    import torch

    if launched_ranks() > 1:
        raise UsageError("--replicas under torchrun: Ray starts the processes; leave out one of the two")
    replicas, most = replica_counts(args)
    there = torch.cuda.device_count()
    if args.device == "cpu" or (there == 0 and args.device is None):
        return replicas, most, 0
    if most > there:
        raise UsageError(f"{most} replicas need a GPU each, and there are {there}: ask for fewer, or for --device cpu")
    return replicas, most, 1


def replica_options(args: argparse.Namespace) -> dict[str, Any]:
    """What `served_models` is given there."""
    return {name: value for name, value in vars(args).items() if name not in _NOT_OF_REPLICAS}


def served_models(options: Mapping[str, Any]) -> list[ServedModel]:
    """The decoders that the options name, made in this process.

    Args:
        options: of `radar serve`, by their names in Python.
    """
    args = argparse.Namespace(**options)
    rows = {"max_batch_size": args.max_batch_size, "cache_tokens": args.cache_tokens}
    decoder = make_decoder(args, fallback=not args.no_fallback, tp_plan="auto", **rows)
    name = args.name or _name(args.target)
    models = [ServedModel(name, decoder)]
    if args.compare:
        models += [ServedModel(f"{name}@{method}", one) for method, one in _compared(decoder, args, rows).items()]
    return models


def _name(target: str | None) -> str:
    if target is None:
        return EMBEDDED
    return Path(target).resolve().name if Path(target).is_dir() else target


def _compared(decoder: Any, args: argparse.Namespace, rows: dict[str, Any]) -> dict[str, Any]:
    """EAGLE-3 and plain decoding on the same weights."""
    from radar import AutoregressiveDecoder
    from radar.cli.decoders import eagle_decoder

    same = rows | {"tokenizer": decoder.tokenizer, "max_length": decoder.max_length, "engine": args.engine}
    return {
        "eagle3": eagle_decoder(decoder, args, **rows),
        "plain": AutoregressiveDecoder(decoder.model, **same),
    }
