"""Logs as lines of JSON on stderr, a line a request, with its id. Nothing of what is asked or answered is in them."""

from __future__ import annotations

import json
import logging
import logging.config
import time
import traceback
from typing import Any

__all__ = ["CONFIG", "JsonFormatter", "as_json", "failure", "log", "to_stderr"]

_LOGGER = logging.getLogger("radar.serve")


class JsonFormatter(logging.Formatter):
    """One object a record; `fields` of the record are its own."""

    def format(self, record: logging.LogRecord) -> str:
        """See `logging.Formatter`."""
        seconds = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{seconds}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "message": record.getMessage(),
        }
        line |= getattr(record, "fields", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


CONFIG: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": JsonFormatter}},
    "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json"}},
    "loggers": {
        name: {"handlers": ["stderr"], "level": level, "propagate": False}
        for name, level in (
            ("radar.serve", "INFO"), ("uvicorn", "INFO"), ("py.warnings", "WARNING"), ("transformers", "WARNING"),
            ("asyncio", "WARNING"),
        )
    },
}  # fmt: skip


def to_stderr(level: int = logging.INFO) -> None:
    """This process's logs become lines of JSON, ours from this level on."""
    logging.config.dictConfig(CONFIG)
    _LOGGER.setLevel(level)


def as_json(level: int, *names: str) -> None:
    """What these loggers say from this level on becomes lines of JSON, the rest is left out."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonFormatter())
    for name in names:
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        logger.setLevel(level)


def log(message: str, **fields: Any) -> None:
    """A line."""
    _LOGGER.info(message, extra={"fields": fields})


def failure(error: BaseException, fields: dict[str, Any]) -> None:
    """A line with the traceback of a bug of ours."""
    trace = "".join(traceback.format_exception(error))
    _LOGGER.error("a request failed", extra={"fields": {"request_id": fields.get("request_id"), "traceback": trace}})
