"""The application that a config of Ray Serve names: `import_path: radar.cli.cluster:build`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

from radar.cli import serve
from radar.cli.served import limits_of, replica_options, served_models
from radar.errors import UsageError

__all__ = ["build"]

_RAYS = {"host": "http_options.host", "port": "http_options.port"}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        """See `ArgumentParser`."""
        raise UsageError(f"args: {message}; they are the options of radar serve, with _ for -")


def build(options: Mapping[str, Any]) -> Any:
    """Replicas behind an ingress.

    Args:
        options: of `radar serve`, `{"max_batch_size": 8}` for `--max-batch-size 8`. A replica has one GPU, or with
            `device: cpu` none.

    Raises:
        UsageError: options that there are not, or that the cluster decides.
    """
    for name in sorted(_RAYS.keys() & options.keys()):
        raise UsageError(f"args: {name} is not the application's: give the config {_RAYS[name]}")
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if not isinstance(value, bool)]
    words += [f"--{name.replace('_', '-')}" for name, value in options.items() if value is True]
    parser = _Parser(allow_abbrev=False)
    serve.add_arguments(parser)
    args = parser.parse_args(words)

    from radar.serve.cluster import Size, bound_ingress, bound_replicas

    replicas, gpus = args.replicas or 1, int(args.device != "cpu")
    most, limits = args.max_replicas or replicas, limits_of(args)
    size = Size(replicas=replicas, most=most, rows=args.max_batch_size, gpus=gpus, cpus=1)
    made = bound_replicas(served_models, replica_options(args), limits, size)
    return bound_ingress(made, limits, serve._keys(args), size)
