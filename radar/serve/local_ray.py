"""Ray for one server: it is started with it, on this machine alone, and nothing of it is left."""

from __future__ import annotations

import logging
import os
import re
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from radar.errors import UsageError
from radar.serve.logs import as_json

__all__ = ["local_replicas"]

NAME = "radar"
STORE = 256 << 20  # bytes of shared memory, for bodies and answers above 100 kB
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system it means: listen on the loopback address
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",  # lines of JSON stay lines of JSON
    "RAY_DEDUP_LOGS": "0",
    "RAY_SERVE_LOG_TO_STDERR": "0",  # there are files, in /tmp/ray/session_latest/logs
}


@contextmanager
def local_replicas(make: Callable[[], Any], *, cpus: int, gpus: int) -> Iterator[Any]:
    """The handle of an application, when all of its replicas are ready; they end with this.

    Args:
        make: makes the application. What it imports of Ray is imported when Ray knows where it is.
        cpus, gpus: that Ray may give to them.

    Raises:
        UsageError: replicas cannot start, by a mistake of who asked for them.
        RuntimeError: they do not, for another reason.
    """
    # whatever the environment holds, of a cluster maybe: it is reached by this machine alone, with a token of its own
    os.environ.update(_ENVIRONMENT, RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=secrets.token_hex(32))
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logs = LoggingConfig(log_level="WARNING", enable_access_log=False)
    as_json(logging.WARNING, "ray")
    as_json(logging.ERROR, "ray.serve")  # its warnings are of every request that waits or is refused
    try:
        ray.init(
            address="local",  # RAY_ADDRESS names a cluster that is not meant
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=STORE,
            configure_logging=False,
        )
        serve.start(proxy_location="Disabled", logging_config=logs)
        try:
            try:
                handle = serve.run(make(), name=NAME, route_prefix=None, logging_config=logs)
            except RuntimeError as error:
                raise _cause(serve.status().applications[NAME]) or error from error
            yield handle
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()


def _cause(application: Any) -> UsageError | None:
    """What the replicas said; None: it is no error of `radar.errors`."""
    said = " ".join(deployment.message for deployment in application.deployments.values())
    found = re.findall(r"^radar\.errors\.\w+: (.*)", said, re.MULTILINE)
    return UsageError(found[-1]) if found else None
