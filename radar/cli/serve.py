"""`radar serve`: an OpenAI-compatible server, and a page to talk to it."""

from __future__ import annotations

import argparse
import os
from importlib.util import find_spec
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from radar.cli.arguments import add_model_options, follows, positive
from radar.errors import NotFoundError, UsageError

__all__ = ["add_arguments", "run"]

KEY = "RADAR_API_KEY"
EMBEDDED = "radar-embedded"
NEEDS = ("fastapi", "uvicorn", "prometheus_client")


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
    if missing := [name for name in NEEDS if find_spec(name) is None]:
        raise UsageError(f'{missing[0]} is missing: pip install "radar-decoding[serve]"')
    from radar.serve.server import RadarServer, bound_socket

    keys, listener = _keys(args), None if follows() else bound_socket(args.host, args.port)

    from radar.cli.decoders import make_decoder
    from radar.serve.app import make_app
    from radar.serve.logs import log
    from radar.serve.models import ServedModel
    from radar.serve.settings import Limits

    names = ("max_waiting", "max_body", "max_tokens", "max_seconds", "shutdown_seconds")
    limits = Limits(**{name: getattr(args, name) for name in names})
    rows = {"max_batch_size": args.max_batch_size, "cache_tokens": args.cache_tokens}
    decoder = make_decoder(args, fallback=not args.no_fallback, tp_plan="auto", **rows)
    name = args.name or _name(args.target)
    models = [ServedModel(name, decoder)]
    if args.compare:
        models += [ServedModel(f"{name}@{method}", one) for method, one in _compared(decoder, args, rows).items()]
    if listener is None:
        decoder.follow()
        return 0
    server = RadarServer(make_app(models, limits=limits, keys=keys), limits)
    if not keys and not ip_address(listener.getsockname()[0].partition("%")[0]).is_loopback:
        log("there is no API key: whoever reaches this address may ask")
    server.run([listener])
    return 0


def _name(target: str | None) -> str:
    if target is None:
        return EMBEDDED
    return Path(target).resolve().name if Path(target).is_dir() else target


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


def _compared(decoder: Any, args: argparse.Namespace, rows: dict[str, Any]) -> dict[str, Any]:
    """EAGLE-3 and plain decoding on the same weights."""
    from radar import AutoregressiveDecoder, FixedDepth, RadarDecoder

    same = rows | {"tokenizer": decoder.tokenizer, "max_length": decoder.max_length, "engine": args.engine}
    eagle = FixedDepth(min(8, decoder.tree.max_calls))
    drafting = {"draft": decoder.draft, "policy": eagle, "tree": decoder.tree, "fallback": False}
    return {
        "eagle3": RadarDecoder(decoder.model, **drafting, **same),
        "plain": AutoregressiveDecoder(decoder.model, **same),
    }
