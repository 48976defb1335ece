"""Connections: how many there may be, and what who does not speak HTTP is told."""

import asyncio
import logging
import resource

from aiohttp import web

from ecluse.errors import RequestRefused
from scoring.serve.app import App, refusal

#: How long a connection may be silent, or take to send its headers, in seconds. Longer than proxies keep theirs.
KEEP_ALIVE_SECONDS = 75.0
#: How long the rest of a body that is not read is let come, so that the caller reads the answer.
_LINGER_SECONDS = 2.0
#: Each holds what it has sent and nobody has read yet, 128 KiB at most, and an open file.
MOST = min(2000, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 2)
_FULL = b'{"error":"There are too many connections."}'
_TURNED_AWAY = (
    b"HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/json\r\nRetry-After: 1\r\nConnection: close\r\n"
    b"Content-Length: %d\r\n\r\n%b" % (len(_FULL), _FULL)
)
#: What aiohttp says of requests that are no HTTP quotes them, keys and all: only what breaks the server itself is logged.
_quiet = logging.getLogger(f"{__name__}.http")
_quiet.setLevel(logging.CRITICAL)


class Connection(web.RequestHandler):
    """One connection, whose errors are answered as all others are."""

    def handle_error(
        self,
        request: web.BaseRequest,
        status: int = 500,
        exc: BaseException | None = None,
        message: str | None = None,
    ) -> web.StreamResponse:
        """What is no HTTP is not quoted: it may be a key."""
        answer = super().handle_error(request, status, exc, message)
        said = refusal(RequestRefused(f"The request is no valid HTTP ({type(exc).__name__}).", status=answer.status))
        said.force_close()
        return said


class Server(web.Server):
    """Makes connections, and turns away those beyond `MOST`."""

    def __init__(self, app: App) -> None:
        super().__init__(app, handler_cancellation=True)  # who hung up is not scored

    def __call__(self) -> web.RequestHandler:
        """A connection that comes."""
        return Connection(
            self,
            loop=asyncio.get_running_loop(),
            access_log=_quiet,
            logger=_quiet,
            keepalive_timeout=KEEP_ALIVE_SECONDS,
            lingering_time=_LINGER_SECONDS,
        )

    def connection_made(self, handler: web.RequestHandler, transport: asyncio.Transport) -> None:
        """Take it, or turn it away."""
        super().connection_made(handler, transport)
        if len(self.connections) > MOST:
            transport.write(_TURNED_AWAY)
            transport.close()
