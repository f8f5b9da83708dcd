"""`radar serve`: an OpenAI-compatible server, and a page to talk to it."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path

from radar.cli.arguments import add_model_options, follows, positive
from radar.errors import NotFoundError, UsageError

__all__ = ["add_arguments", "run"]

KEY = "RADAR_API_KEY"
NEEDS = ("fastapi", "uvicorn", "prometheus_client")
NEEDS_RAY = ("ray", "mmh3")  # mmh3: of its part for serving


def add_arguments(parser: argparse.ArgumentParser) -> None:
    from radar.target.launched import launched_ranks

    parser.description = (
        "Serves a model under OpenAI's API: /v1/chat/completions, /v1/completions, /v1/models, with /health, /metrics "
        "for Prometheus, and a page to chat at /. Texts share rounds. SIGTERM and Ctrl-C let those under way end. "
        "Under torchrun --nproc-per-node N -m radar serve ... the model is split over N GPUs. "
        'Needs pip install "radar-decoding[serve]".'
    )
    group = parser.add_argument_group("server")
    group.add_argument(
        "--host", default="127.0.0.1", metavar="ADDRESS", help="to listen on (default 127.0.0.1: this machine alone)"
    )
    group.add_argument(
        "--port", type=_port, default=8000, metavar="N", help="to listen on; 0: a free one (default 8000)"
    )
    group.add_argument("--name", metavar="NAME", help="what requests call the model (default: the target's own)")
    group.add_argument(
        "--api-key", metavar="KEY", help=f"that requests must bring (others here can see it: {KEY} hides)"
    )
    group.add_argument("--api-key-file", type=Path, metavar="FILE", help="the same, one key a line")
    group.add_argument(
        "--compare", action="store_true", help="serve NAME@eagle3 and NAME@plain too, each with caches of its own"
    )
    replicas = parser.add_argument_group("replicas", 'Needs pip install "radar-decoding[ray]".')
    replicas.add_argument(
        "--replicas", type=positive, metavar="N", help="processes with a decoder each, and a GPU each where there are"
    )
    replicas.add_argument(
        "--max-replicas", type=positive, metavar="N", help="as many at most, started when requests wait (default: none)"
    )
    limits = parser.add_argument_group("limits")
    limits.add_argument(
        "--max-batch-size", type=positive, default=8, metavar="N", help="texts that share a round (default 8, most 32)"
    )
    limits.add_argument(
        "--cache-tokens", type=positive, metavar="N", help="that those hold together (default: --max-length each)"
    )
    limits.add_argument(
        "--max-waiting", type=_count, default=64, metavar="N", help="texts that wait; more are refused (default 64)"
    )
    limits.add_argument(
        "--max-body", type=positive, default=1 << 20, metavar="N", help="bytes of a request (default 1048576)"
    )
    limits.add_argument("--max-tokens", type=positive, metavar="N", help="of one text (default: what fits)")
    limits.add_argument(
        "--max-seconds", type=_seconds, default=600.0, metavar="S", help="that a request may take (default 600)"
    )
    limits.add_argument(
        "--shutdown-seconds",
        type=_seconds,
        default=20.0 if launched_ranks() > 1 else 30.0,
        metavar="S",
        help="for texts to end in (default 30; 20 under torchrun, which kills 30 seconds after a signal)",
    )
    add_model_options(parser, fallback=True)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 2**16):
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 65535, got {text!r}")
    return int(text)


def _count(text: str) -> int:
    return 0 if text.strip() == "0" else positive(text)


def _seconds(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 < value < 1e9:
        raise argparse.ArgumentTypeError(f"must be seconds above 0, got {text!r}")
    return value


def run(args: argparse.Namespace) -> int:
    for extra, needs in (("serve", NEEDS), ("ray", NEEDS_RAY if args.replicas or args.max_replicas else ())):
        if missing := [name for name in needs if find_spec(name) is None]:
            raise UsageError(f'{missing[0]} is missing: pip install "radar-decoding[{extra}]"')
    from radar.serve.server import RadarServer, bound_socket

    keys, listener = _keys(args), None if follows() else bound_socket(args.host, args.port)

    from radar.cli.served import limits_of, replicas_asked, served_app, served_models
    from radar.serve.logs import log

    limits = limits_of(args)
    if listener is None:
        if args.replicas or args.max_replicas:
            replicas_asked(args)  # refuses them
        models = served_models(vars(args))  # all of them are kept as long as rank 0 asks
        models[0].decoder.follow()
        return 0
    with served_app(args, limits, keys) as app:
        server = RadarServer(app, limits)
        if not keys and not ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
            log("there is no API key: whoever reaches this address may ask")
        server.run([listener])
    return 0


def _keys(args: argparse.Namespace) -> list[str]:
    """Of the option, else of the file, else of the environment."""
    if args.api_key is not None:
        found = [args.api_key.strip()]
    elif args.api_key_file is not None:
        try:
            found = [line.strip() for line in args.api_key_file.read_text(encoding="utf-8-sig").splitlines()]
        except FileNotFoundError as error:
            raise NotFoundError(f"no such file of keys: {args.api_key_file}") from error
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(
                f"{args.api_key_file} is no file of keys: {error}; write a key a line, in UTF-8"
            ) from error
        found = [key for key in found if key]
    else:
        found = [os.environ[KEY].strip()] if KEY in os.environ else []
        if not found:
            return []
    if not found or not all(found):
        raise UsageError("the API key is empty, which would open the server: give one, or leave it out for none")
    try:
        for key in found:
            key.encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"the API key is not UTF-8: {error.reason}; write another one") from error
    return found
