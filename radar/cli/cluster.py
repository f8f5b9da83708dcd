"""The application that a config of Ray Serve names: `import_path: radar.cli.cluster:build`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any, NoReturn

from radar.cli import serve
from radar.cli.served import limits_of, replica_counts, replica_options, served_models
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
        options: of `radar serve`, `{"max_batch_size": 8}` for `--max-batch-size 8`, true and false for those that are
            on or off; None: the default. A replica has one GPU, or with `device: cpu` none.

    Raises:
        UsageError: options that there are not, or that the cluster decides.
    """
    for name in sorted(_RAYS.keys() & options.keys()):
        raise UsageError(f"args: {name} is not the application's: give the config {_RAYS[name]}")
    parser = _Parser(allow_abbrev=False, add_help=False)
    serve.add_arguments(parser)
    args = parser.parse_args(_words(options, parser))

    from radar.serve.cluster import Size, bound_ingress, bound_replicas

    (replicas, most), limits, gpus = replica_counts(args), limits_of(args), int(args.device != "cpu")
    size = Size(replicas=replicas, most=most, rows=args.max_batch_size, gpus=gpus, cpus=1)
    made = bound_replicas(served_models, replica_options(args), limits, size)
    return bound_ingress(made, limits, serve._keys(args), size)


def _words(options: Mapping[str, Any], parser: argparse.ArgumentParser) -> list[str]:
    """A command line. What says nothing must not become a word: a key that is null is none, and not "None"."""
    words = []
    for name, value in options.items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(value, bool):
            if not isinstance(parser.get_default(name.replace("-", "_")), bool):
                raise UsageError(
                    f"args: {name} is not on or off, and has the value {str(value).lower()}: give {option} of radar "
                    "serve what it takes, in quotes if it is a text, or leave it out"
                )
            words += [option] * value
        elif value is not None:
            words.append(f"{option}={value}")
    return words
