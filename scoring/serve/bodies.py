"""The bodies of requests: how large, how slow, and how much all of them together may be."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from ecluse.errors import RequestRefused
from ecluse.sections import ServeSettings

#: What all requests in hand may hold together, in times of `request_bytes`.
TOGETHER = 32


class Bodies:
    """Reads bodies. Each counts until its request is answered: rows that wait are made of it."""

    def __init__(self, settings: ServeSettings) -> None:
        self._settings = settings
        self._held = 0

    @asynccontextmanager
    async def whole(self, request: web.BaseRequest, deadline: float) -> AsyncIterator[bytes]:
        """The body, if it is not too large and comes until `deadline`, by the loop's clock.

        Raises:
            RequestRefused: it does not, or there are too many.
        """
        most = self._settings.request_bytes
        if (request.content_length or 0) > most:
            raise _too_large(most)
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0  # of the answer nothing is sent yet
        parts, size = [], 0
        try:
            try:
                async with asyncio.timeout_at(deadline):
                    while part := await request.content.readany():
                        parts.append(part)
                        size += len(part)
                        self._held += len(part)
                        if size > most:
                            raise _too_large(most)
                        if self._held > TOGETHER * most:
                            raise RequestRefused("Requests hold too many bytes. Ask again later.", status=429)
            except TimeoutError as error:
                seconds = self._settings.request_seconds
                raise RequestRefused(f"The body did not come within {seconds:g} s.", status=408) from error
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self._held -= size


def _too_large(most: int) -> RequestRefused:
    return RequestRefused(f"The body is larger than {most:,} bytes (serve.request_bytes).", status=413)
