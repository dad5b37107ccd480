"""Image files from the web, read as they come."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

from storkit.core.errors import NotFound, StorkitError, UsageError
from storkit.system.timeouts import scaled

SCHEMES = ("https://", "http://")
_SILENT = scaled(60.0)
"""Seconds in which a server has to send something."""


def is_url(source: object) -> bool:
    """Whether an image is named by where it is in the web."""
    return isinstance(source, str) and source.startswith(SCHEMES)


class Download:
    """What a server sends, to be read like an open file: all of it, or an error.

    Raises NotFound, UsageError: it has no such file, cannot be reached, or stops before the end. What comes by http://
    is whatever somebody on the way makes of it, so it takes a checksum.
    """

    def __init__(self, url: str, checksum: str) -> None:
        import http.client
        import urllib.error
        import urllib.parse
        import urllib.request

        place = urllib.parse.urlsplit(url)
        if place.username or place.password:  # which is not repeated here
            message = (
                f"{place.scheme}://...@{place.hostname}: an address with a user or a password in it is not fetched"
            )
            raise UsageError(message, "curl --netrc URL | storkit volume import - NAME")
        if url.startswith("http://") and not checksum:
            raise UsageError(f"{url}: what comes by http can be changed on its way", "--checksum sha256:HEX, or https")
        self._url = url
        self._broken: tuple[type[Exception], ...] = (OSError, http.client.HTTPException, ValueError)
        # No handlers for files and FTP, to which a server could send us on.
        opener = urllib.request.OpenerDirector()
        for handler in (
            urllib.request.ProxyHandler, urllib.request.HTTPHandler, urllib.request.HTTPSHandler,
            urllib.request.HTTPDefaultErrorHandler, urllib.request.HTTPRedirectHandler,
            urllib.request.HTTPErrorProcessor, urllib.request.UnknownHandler,
        ):  # fmt: skip
            opener.add_handler(handler())
        try:
            self._answer: Any = opener.open(url, timeout=_SILENT)
        except urllib.error.HTTPError as error:
            kind = NotFound if error.code in (404, 410) else UsageError
            raise kind(f"{url}: the server says {error.code} {error.reason}", f"curl -I {url}") from None
        except self._broken as error:
            raise self._failed(error) from None
        length = self._answer.headers.get("Content-Length", "")
        self._left = int(length) if length.isdecimal() else None

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        read = cast(Callable[[int], bytes], self._answer.read)
        try:
            piece = read(size)
        except self._broken as error:
            raise self._failed(error) from None
        if self._left is not None:
            self._left -= len(piece)
            if not piece and self._left > 0:
                raise UsageError(f"{self._url}: it broke off {self._left} bytes before its end", "try again")
        return piece

    def close(self) -> None:
        self._answer.close()

    def _failed(self, error: Exception) -> StorkitError:
        reason = getattr(error, "reason", None) or error
        return UsageError(f"{self._url} cannot be fetched: {reason}", f"curl -I {self._url}")
