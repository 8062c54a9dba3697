"""A bound on the files that visitors leave on the disk of the machine that serves the page.

gradio deletes an upload that nobody asked about after some minutes (``delete_cache``), but accepts any number of them
until then, a thousand in one request. It does not delete a file whose sender went away half-way, nor empty folders.
"""

import contextlib
import os
import time
from collections.abc import Awaitable, Callable, MutableMapping
from http import HTTPStatus
from pathlib import Path
from typing import Any

_FORM_BYTES = 1 << 16  # names and boundaries around a photo in a request

Message = MutableMapping[str, Any]
App = Callable[[Message, Callable[[], Awaitable[Message]], Callable[[Message], Awaitable[None]]], Awaitable[None]]


class UploadLimit:
    """ASGI middleware that refuses a request whose files would be too many; the disk holds ``most`` requests at most.

    Args:
        app: gradio's.
        folder: where gradio stores uploads; the examples of the page lie there as well.
        max_bytes: of one upload.
        most: files in the folder, and requests that are on their way there.
        keep_s: age at which a half-sent file or an empty folder is removed.
    """

    def __init__(self, app: App, folder: Path, max_bytes: int, most: int, keep_s: float):
        self._app, self._folder, self._max_bytes, self._most, self._keep_s = app, folder, max_bytes, most, keep_s
        self._coming = 0

    async def __call__(self, scope: Message, receive: Callable, send: Callable) -> None:
        """Answer one request, or refuse it in one line of text, which the page shows."""
        if scope["type"] != "http" or scope["method"] != "POST":
            return await self._app(scope, receive, send)
        headers = dict(scope["headers"])
        kinds = [value.lower() for name, value in scope["headers"] if name == b"content-type"]
        if b"transfer-encoding" in headers:
            return await _refuse(send, HTTPStatus.LENGTH_REQUIRED, "a request must state its length")
        if int(headers.get(b"content-length", 0)) > self._max_bytes + _FORM_BYTES:
            reason = f"this is too large: photos of up to {self._max_bytes / 2**20:g} MB are accepted"
            return await _refuse(send, HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)
        if not any(b"multipart" in kind for kind in kinds):
            return await self._app(scope, receive, send)
        if not scope["path"].rstrip("/").endswith("/upload"):
            return await _refuse(send, HTTPStatus.NOT_FOUND, "no files are accepted here")
        if self._count() + self._coming >= self._most:
            while (await receive()).get("more_body"):  # a browser shows the reason only if it could send everything
                pass
            reason = "the page is busy, too many photos wait for their answers: try again in a few minutes"
            return await _refuse(send, HTTPStatus.SERVICE_UNAVAILABLE, reason)
        self._coming += 1
        try:
            return await self._app(scope, receive, send)
        finally:
            self._coming -= 1

    def _count(self) -> int:
        """Return the number of files in the folder, after removing what gradio does not."""
        files, old = 0, time.time() - self._keep_s
        for place, _, names in os.walk(self._folder, topdown=False):
            files += len(names)
            with contextlib.suppress(OSError):  # another thread moves and removes files here
                if place == os.fspath(self._folder):  # complete uploads lie in folders of their own
                    for path in (os.path.join(place, name) for name in names):
                        if os.stat(path).st_mtime < old:
                            os.unlink(path)
                            files -= 1
                elif not names and os.stat(place).st_mtime < old:
                    os.rmdir(place)
        return files


async def _refuse(send: Callable, status: HTTPStatus, reason: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8"), (b"connection", b"close")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": reason.encode()})
