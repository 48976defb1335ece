"""The routes of `ecluse serve`: from a request over HTTP to its answer.

A handler of aiohttp's low-level server with its own table of routes, because routing and middlewares of an application
would cost a request as much as its score.
"""

import asyncio
import logging
import re
import time
from collections.abc import Awaitable, Callable
from urllib.parse import unquote

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.web_exceptions import HTTPException
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ecluse.errors import RequestRefused
from ecluse.settings import Settings
from scoring.champion import Champion
from scoring.live import LiveModel
from scoring.serve import answers
from scoring.serve.batcher import Batcher, no_champion, require_version
from scoring.serve.bodies import Bodies
from scoring.serve.keys import Keys
from scoring.serve.metrics import HttpTelemetry
from scoring.serve.openapi import openapi
from scoring.serve.protocol import (
    JSON_LENGTH,
    Error,
    IndexedModel,
    Live,
    ModelReady,
    encode,
    read_index_request,
    read_request,
)
from scoring.serve.rows import RowReader

logger = logging.getLogger(__name__)

_MODEL = re.compile(r"^/v2/models/(?P<model>[^/]+)(?:/versions/(?P<version>[^/]+))?(?P<rest>/ready|/infer)?$")
_JSON = {"Content-Type": "application/json"}
#: Statuses after which the caller should ask again, and when: in seconds.
_AGAIN = {429: {"Retry-After": "1"}, 503: {"Retry-After": "1"}}
#: The request, its body, its deadline by the loop's clock, and the version that its path names.
_Post = Callable[[web.BaseRequest, bytes, float, int | None], Awaitable[web.Response]]


class App:
    """Answers requests.

    Args:
        settings: the stream's.
        live: where the champion is read.
        telemetry: where it counts.
        batcher: what scores.
        keys: who may ask; None: anyone.
    """

    def __init__(
        self, settings: Settings, live: LiveModel, telemetry: HttpTelemetry, batcher: Batcher, keys: Keys | None
    ) -> None:
        self._settings, self._live, self._telemetry = settings.serve, live, telemetry
        self._model = settings.model_name
        self._batcher, self._keys = batcher, keys
        self._bodies = Bodies(settings.serve)
        events = settings.stream.schema_of_events()
        self._read_rows = RowReader(events, settings.serve.request_rows)
        document = encode(openapi(self._model, events, with_keys=keys is not None))
        #: Set when the server is told to stop: no longer ready, and each connection closes after its next answer.
        self.stopping = False
        self._gets: dict[str, Callable[[int | None], web.Response]] = {
            "/v2": lambda _: _json(encode(answers.SERVER)),
            "/v2/health/live": lambda _: _json(encode(Live(True))),
            "/v2/health/ready": self._health_ready,
            "/v2/models/{model}": self._metadata,
            "/v2/models/{model}/ready": self._model_ready,
            "/metrics": lambda _: self._metrics(),
            "/openapi.json": lambda _: _json(document),
        }
        self._posts: dict[str, _Post] = {
            "/v2/repository/index": self._index,
            "/v2/models/{model}/infer": self._infer,
        }

    async def __call__(self, request: web.BaseRequest) -> web.Response:
        """Answer a request. Whatever goes wrong is an answer too."""
        self._telemetry.begin()
        try:
            return await self._counted(request)
        finally:
            self._telemetry.end()

    async def _counted(self, request: web.BaseRequest) -> web.Response:
        started = time.perf_counter()
        path = request.raw_path.partition("?")[0]
        named = _MODEL.match(path)
        route = f"/v2/models/{{model}}{named['rest'] or ''}" if named else path
        if route not in self._gets and route not in self._posts:
            route = "none"  # a metric's label: paths that callers invent would be without end
        try:
            answer = await self._answer(request, route, named)
        except RequestRefused as error:
            answer = refusal(error)
        except (HTTPException, HttpProcessingError, web.RequestPayloadError) as error:
            answer = refusal(RequestRefused(f"The body cannot be read ({type(error).__name__})."))
        except ConnectionError:  # nobody waits for the answer
            raise
        except Exception as error:
            logger.exception("a request to %s failed", route)
            answer = refusal(RequestRefused(f"The server failed ({type(error).__name__}).", status=500))
        if self.stopping:
            answer.force_close()
        self._telemetry.count(route, answer.status, time.perf_counter() - started)
        return answer

    async def _answer(self, request: web.BaseRequest, route: str, named: re.Match[str] | None) -> web.Response:
        """The answer of a route, to who may have it."""
        keys = self._keys
        if (
            keys is not None
            and not route.startswith("/v2/health/")
            and not keys.holds(request.headers.get("Authorization"))
        ):
            challenge = {"WWW-Authenticate": 'Bearer realm="ecluse"'}
            raise RequestRefused("A bearer key that may ask is needed.", status=401, headers=challenge)
        wanted = self._wanted(named) if named else None
        if (get := self._gets.get(route)) is not None:
            _require_method(request, "GET")
            return get(wanted)
        if (post := self._posts.get(route)) is not None:
            _require_method(request, "POST")
            deadline = asyncio.get_running_loop().time() + self._settings.request_seconds
            async with self._bodies.whole(request, deadline) as body:
                return await post(request, body, deadline, wanted)
        raise RequestRefused("There is nothing at this path; /openapi.json lists what there is.", status=404)

    def _wanted(self, named: re.Match[str]) -> int | None:
        """The version that a path names, of the one model that there is."""
        model, version = unquote(named["model"]), named["version"] and unquote(named["version"])
        if model != self._model:
            raise RequestRefused(f"There is no model '{model}', only {self._model}.", status=404)
        if version is None:
            return None
        if not (version.isascii() and version.isdigit() and len(version) < 19):
            raise RequestRefused(f"There is no version '{version}': versions are whole numbers.", status=404)
        return int(version)

    # -- health and metadata -------------------------------------------------------------------------------------------

    def _champion(self, wanted: int | None = None) -> Champion:
        champion = self._live.champion
        if champion is None:
            raise no_champion(self._live)
        require_version(champion, wanted)
        return champion

    def _health_ready(self, _: int | None) -> web.Response:
        if self.stopping:
            raise RequestRefused("The server stops.", status=503)
        if self._keys is not None and self._live.champion is None:  # without a key it is not told why
            raise RequestRefused("No model is warm yet.", status=503)
        self._champion()
        return _json(encode(Live(True)))

    def _metadata(self, wanted: int | None) -> web.Response:
        return _json(encode(answers.metadata(self._champion(wanted), self._live.degraded)))

    def _model_ready(self, wanted: int | None) -> web.Response:
        return _json(encode(ModelReady(self._champion(wanted).name, True)))

    def _metrics(self) -> web.Response:
        body = self._telemetry.exposition(self._live.champion)
        return web.Response(body=body, headers={"Content-Type": CONTENT_TYPE_LATEST})

    async def _index(self, _: web.BaseRequest, body: bytes, __: float, ___: int | None) -> web.Response:
        asked = read_index_request(body)
        champion = self._live.champion
        if champion is not None:
            found = [IndexedModel(self._model, str(champion.version), "READY", self._live.degraded)]
        else:
            found = [IndexedModel(self._model, "", "UNAVAILABLE", str(no_champion(self._live)))]
        return _json(encode([one for one in found if one.state == "READY" or not asked.ready]))

    # -- scoring -------------------------------------------------------------------------------------------------------

    async def _infer(self, request: web.BaseRequest, body: bytes, deadline: float, wanted: int | None) -> web.Response:
        """Read, check, score with others in one call, answer."""
        asked, binary = read_request(body, request.headers.get(JSON_LENGTH))
        answers.require_outputs(asked)
        rows = self._read_rows(asked, binary)
        try:
            async with asyncio.timeout_at(deadline):
                scored = await self._batcher.score(rows, wanted)
        except TimeoutError as error:
            seconds = self._settings.request_seconds
            raise RequestRefused(
                f"There was no score within {seconds:g} s (serve.request_seconds).", status=503
            ) from error
        content, json_length = answers.answer(asked, scored)
        if json_length is None:
            return _json(content)
        headers = {"Content-Type": "application/octet-stream", JSON_LENGTH: str(json_length)}
        return web.Response(body=content, headers=headers)


def _require_method(request: web.BaseRequest, method: str) -> None:
    if request.method != method:
        raise RequestRefused(f"This path takes {method}, not {request.method}.", status=405, headers={"Allow": method})


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, headers=_JSON)


def refusal(error: RequestRefused) -> web.Response:
    """The answer that says why there is none."""
    headers = _JSON | _AGAIN.get(error.status, {}) | error.headers
    answer = web.Response(body=encode(Error(str(error))), status=error.status, headers=headers)
    if error.status in (408, 413):  # the rest of the body is not read
        answer.force_close()
    return answer
