"""Ray for one server: it is started with it, on this machine alone, and nothing of it is left."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from radar.serve.logs import as_json

__all__ = ["local_replicas"]

STORE = 256 << 20  # bytes of shared memory, for bodies and answers above 100 kB
_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # on any system it means: listen on the loopback address
    "RAY_AUTH_MODE": "token",  # and who is on this machine needs the token
    "RAY_USAGE_STATS_ENABLED": "0",  # nothing is told to anybody
    "RAY_DISABLE_WORKER_LOG_PREFIX": "1",  # lines of JSON stay lines of JSON
    "RAY_DEDUP_LOGS": "0",
}


@contextmanager
def local_replicas(make: Callable[[], Any], *, cpus: int, gpus: int) -> Iterator[Any]:
    """The handle of an application, when all of its replicas are ready; they end with this.

    Args:
        make: makes the application. What it imports of Ray is imported when Ray knows where it is.
        cpus, gpus: that Ray may give to them.

    Raises:
        RadarError: a replica does not start.
    """
    os.environ.update({name: value for name, value in _ENVIRONMENT.items() if name not in os.environ})
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray
    from ray import serve
    from ray.serve.schema import LoggingConfig

    logs = LoggingConfig(log_level="WARNING", enable_access_log=False)
    as_json("ray", "ray.serve")
    try:
        ray.init(
            address="local",
            num_cpus=cpus,
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=STORE,
            configure_logging=False,
        )
        serve.start(proxy_location="Disabled", logging_config=logs)
        try:
            yield serve.run(make(), name="radar", route_prefix=None, logging_config=logs)
        finally:
            serve.shutdown()  # type: ignore[no-untyped-call]
    finally:
        ray.shutdown()
