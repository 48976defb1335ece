"""The process of `ecluse serve`: it listens, follows the models topic, and stops in order."""

import asyncio
import contextlib
import logging
import os
import signal
import ssl
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from aiohttp import web

from ecluse.errors import SettingsError
from ecluse.sections import ServeSettings
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from scoring.live import LiveModel
from scoring.serve.app import App
from scoring.serve.batcher import Batcher
from scoring.serve.connections import Server
from scoring.serve.keys import Keys
from scoring.serve.metrics import HttpTelemetry

logger = logging.getLogger(__name__)

#: How often the thread that follows the models topic is looked at.
_LOOK_SECONDS = 0.5


def serve(settings: Settings) -> None:
    """Answer over HTTP until SIGTERM or SIGINT.

    Raises:
        SettingsError: the port, the certificate or the keys cannot be used.
        TopicsWrong: the models topic is missing.
    """
    asyncio.run(_serve(settings))


async def _serve(settings: Settings) -> None:
    telemetry, stop = Telemetry(), asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    with LiveModel(settings, telemetry) as live:
        async with answering(settings, live, telemetry) as address:
            logger.info("listening at %s; health at /v2/health/ready, the interface at /openapi.json", address)
            while not stop.is_set():
                if live.champion is None and not live.is_alive():
                    live.first()  # raises why there will be no model
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), _LOOK_SECONDS)
    logger.info("stopped")


@asynccontextmanager
async def answering(settings: Settings, live: LiveModel, telemetry: Telemetry) -> AsyncIterator[str]:
    """Listen and answer; the address, as a URL. In the end what is in hand is finished, and nothing new is taken.

    Raises:
        SettingsError: the port, the certificate or the keys cannot be used.
    """
    serving = settings.serve
    keys = Keys(serving.keys_file) if serving.keys_file is not None else None
    context = _tls(serving)
    with Batcher(serving, live, telemetry) as batcher:
        http = HttpTelemetry(telemetry, lambda: batcher.rows)
        app = App(settings, live, http, batcher, keys)
        runner = web.ServerRunner(Server(app), shutdown_timeout=1.0)
        await runner.setup()
        try:
            site = web.TCPSite(runner, serving.host, serving.port, ssl_context=context, backlog=1024)
            try:
                await site.start()
            except OSError as error:
                place = f"{serving.host}:{serving.port}"
                # asyncio's own text repeats the address; a name that is not known has a negative number.
                why = os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror
                raise SettingsError([f"serve.host, serve.port: {place} cannot be used: {why}."]) from error
            yield site.name
            app.stopping = True
            await site.stop()
            # First, because aiohttp's own end takes no more of a body that is on its way.
            await http.nothing_in_hand(serving.request_seconds)
        finally:
            await runner.cleanup()


def _tls(serving: ServeSettings) -> ssl.SSLContext | None:
    if serving.tls_certfile is None:
        return None
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(serving.tls_certfile, serving.tls_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise SettingsError(
            [f"serve.tls_certfile, serve.tls_keyfile: the certificate cannot be used: {error.strerror or error}."]
        ) from error
    return context
