"""The page and its files, with the policy that keeps anything else from running in it."""

from __future__ import annotations

from importlib.resources import files

from starlette.responses import Response

from radar.serve.errors import ApiError
from radar.tools.show import palette

__all__ = ["page_file"]

_TYPES = {"index.html": "text/html", "page.css": "text/css", "page.js": "text/javascript", "chat.js": "text/javascript"}
_HEADERS = {
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src data:; base-uri 'none'; "
        "form-action 'none'; frame-ancestors 'none'"
    ),
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


def page_file(name: str) -> Response:
    """A file of the page. Raises ApiError, 404, for any other."""
    if name not in _TYPES:
        raise ApiError(404, "there is no such file of the page")
    text = (files("radar.serve") / "page" / name).read_text(encoding="utf-8")
    if name == "page.css":
        text = palette.variables() + text
    return Response(text, media_type=_TYPES[name], headers=_HEADERS)
