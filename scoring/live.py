"""The model that the route names: loaded, verified and warm, always the newest, while scoring goes on.

A thread follows the models topic. What it has loaded is handed to who scores, who takes it between two chunks. What fails
changes nothing: the model before goes on, and `degraded` says why. It is tried again, in growing intervals. The bypass switch
stands on the same topic and is followed beside it (`scoring.switch`), also while a model loads.
"""

import gc
import logging
import os
import queue
import threading
import time
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from typing import Self

from confluent_kafka import KafkaException

from ecluse.contract.records import Arm, Release
from ecluse.errors import BrokerError, EcluseError, ModelError, ModelNotFound, SettingsError, TopicsWrong, cause
from ecluse.model.registry import Registry, RegistryReader, Routed
from ecluse.model.routes import REMEMBERED
from ecluse.model.runtime import LARGE_BYTES, Model, give_back
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from scoring.champion import Champion, load_champion, single_champion
from scoring.switch import LiveSwitch

logger = logging.getLogger(__name__)

#: How long the thread waits for the next record, and so for who asks it something.
POLL_SECONDS = 0.02
#: How long reading to the topic's end may take before it counts as an outage.
READ_SECONDS = 30.0
#: The wait before a version that failed is tried again; it doubles up to the last.
RETRY_SECONDS, LAST_RETRY_SECONDS = 5.0, 300.0
#: The wait before a broker that does not answer is asked again.
OUTAGE_SECONDS = 1.0
#: How often a long download is told of.
TELL_SECONDS = 10.0
END_SECONDS = 5.0
#: By how much a thread that loads a large model beside the one that scores is nicer than the others (Linux: of a thread).
LEISURELY = 10


@dataclass(frozen=True)
class Loading:
    """A version on its way: how much of it is fetched, 0 to 1."""

    version: int
    fetched: float


class LiveModel(threading.Thread):
    """Keeps the routed champion ready. A context, whose end ends the thread.

    Args:
        settings: the stream's.
        telemetry: where it counts.
        clock: seconds that only grow.
    """

    def __init__(self, settings: Settings, telemetry: Telemetry, clock: Callable[[], float] = time.monotonic) -> None:
        super().__init__(name="ecluse-live-model", daemon=True)
        self._settings, self._telemetry, self._clock = settings, telemetry, clock
        self._closing = threading.Event()
        self._first = threading.Event()
        self._fatal: EcluseError | None = None
        self._hand_over: Callable[[Champion], None] = _nobody
        self._handing = threading.Lock()
        self._asked: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._failed: tuple[int, int] | None = None
        self._try_again, self._wait = 0.0, RETRY_SECONDS
        #: The large model whose memory is to be given back once nobody holds it.
        self._leaving: Callable[[], Model | None] | None = None
        self._said = self._fault = ""
        #: The bypass switch, which this thread follows too.
        self.switch = LiveSwitch(settings, clock)
        #: The newest model that is warm; None before the first is. Replaced whole.
        self.champion: Champion | None = None
        #: What the topic names, as far as it was read.
        self.routed: Routed | None = None
        #: The version on its way, if there is one.
        self.loading: Loading | None = None

    # -- called from other threads -------------------------------------------------------------------------------------

    @property
    def degraded(self) -> str:
        """Why the routed version does not score, or is not known, and why the bypass switch is not obeyed; empty where all is
        well, or where there is neither."""
        return " ".join(filter(None, (self._fault, self.switch.refused)))

    def first(self) -> Champion:
        """Wait for the first model. Ends with it, or as the process does.

        Raises:
            SettingsError, TopicsWrong: without a change of the configuration there will be none.
        """
        while not self._first.wait(1.0):
            pass
        if self._fatal is not None:
            raise self._fatal
        assert self.champion is not None  # set before the event
        return self.champion

    def hand_over_to(self, take: Callable[[Champion], None]) -> None:
        """Have each new model given to `take`, in this thread, and the one that is there now in the caller's."""
        with self._handing:  # or a model that comes just now could be overtaken by the one before
            self._hand_over = take
            if self.champion is not None:
                take(self.champion)

    def up_to_date(self, then: Callable[[], None]) -> None:
        """Have `then` called, in this thread, once what the topic says at this moment serves, or is known not to."""
        self._asked.put(then)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._closing.set()
        self.join(END_SECONDS)

    # -- the thread ----------------------------------------------------------------------------------------------------

    def run(self) -> None:
        """Follow the topic until closed. An outage of the broker is waited out: the model stays."""
        while not self._closing.is_set():
            try:
                with RegistryReader(self._settings) as reader:
                    reader.read_to_end(READ_SECONDS)
                    self._said = ""
                    while not self._closing.is_set():
                        self._keep_up(reader)
                        self._answer(reader)
                        self._clear_up()
                        reader.poll(POLL_SECONDS)
            except TopicsWrong as error:
                self._give_up(error)
            except (BrokerError, KafkaException) as error:
                what = f"The models topic cannot be read, which is tried again: {error}"
                self._say(what)
                self._mark(self._fault or what)
                self._closing.wait(OUTAGE_SECONDS)
            except Exception as error:
                logger.exception("following the models topic failed, which is tried again")
                self._mark(f"Following the models topic failed: {error}")
                self._closing.wait(OUTAGE_SECONDS)

    def _answer(self, reader: RegistryReader) -> None:
        """Tell those who asked, when what they asked for holds."""
        asked = []
        while not self._asked.empty():
            asked.append(self._asked.get_nowait())
        if not asked:
            return
        try:
            reader.read_to_end(READ_SECONDS)
            self._keep_up(reader)
        except Exception:
            for then in asked:  # they wait for the next reader
                self._asked.put(then)
            raise
        for then in asked:
            then()

    def _keep_up(self, reader: RegistryReader) -> None:
        """Have what the route names now ready, if it is not yet and did not just fail."""
        registry = reader.registry
        self._switch(registry)
        routed = self.routed = registry.routes.get(self._settings.model_name)
        champion = self.champion
        if routed is None:
            self._mark("")
            if champion is None:
                name = self._settings.stream.name
                self._say(f"No model scores stream {name} yet: `ecluse model train FILE` makes one. It is waited for.")
            return
        if champion is not None and champion.revision == routed.revision:
            self._mark("")
            return
        release = _release_of(registry, routed)
        attempt = (routed.revision, 0 if release is None else 1)
        if attempt == self._failed and self._clock() < self._try_again:
            return
        if attempt != self._failed:
            self._wait = RETRY_SECONDS
        try:
            arm = single_champion(routed.route)
            if release is None:
                raise ModelNotFound(f"The route names version {arm.version} of {routed.route.name}, never released.")
            fresh = self._loaded(reader, arm, routed.revision, release)
        except Exception as error:
            if not isinstance(error, EcluseError):
                logger.exception("loading version %d failed", routed.route.champion.version)
            self._failed, self._try_again = attempt, self._clock() + self._wait
            self._wait = min(2 * self._wait, LAST_RETRY_SECONDS)
            self._fail(routed, release, error)
            return
        finally:
            self.loading = None
        self._failed = None
        reader.catch_up()
        if self._is_taken_back(registry, routed):
            logger.info("version %d is not taken: it was rolled back while it loaded", fresh.version)
            del fresh  # or it would be in memory beside the next
            if release.size_bytes > LARGE_BYTES:
                give_back()
            self._keep_up(reader)
        else:
            self._serve(fresh)

    def _loaded(self, reader: RegistryReader, arm: Arm, revision: int, release: Release) -> Champion:
        """The arm's model, warm. A large one takes minutes, and the switch is followed meanwhile: off means now."""
        loaded: Future[Champion] = Future()
        args = (self._settings, arm, revision, release, self.champion, self._progress(arm.version))
        leisurely = self.champion is not None and release.size_bytes > LARGE_BYTES

        def load(loaded: Future[Champion]) -> None:
            if leisurely:  # the champion's events come first; this thread ends with the load
                with suppress(OSError):
                    os.setpriority(os.PRIO_PROCESS, threading.get_native_id(), LEISURELY)
            try:
                loaded.set_result(load_champion(*args))
            except BaseException as error:
                loaded.set_exception(error)
            finally:
                del loaded

        loader = threading.Thread(target=load, args=(loaded,), name="ecluse-load", daemon=True)
        loader.start()
        while loader.is_alive():
            with suppress(BrokerError, KafkaException):  # the model is wanted all the same
                reader.catch_up()
            self._switch(reader.registry)
            loader.join(POLL_SECONDS)
        try:
            return loaded.result()
        finally:
            del loaded  # a failure's traceback holds the model that failed, and would be held by it in turn

    def _switch(self, registry: Registry) -> None:
        self.switch.keep_up(registry)
        self._telemetry.model_degraded.set(bool(self.degraded))

    def _is_taken_back(self, registry: Registry, routed: Routed) -> bool:
        """Whether the route, while its version was loading, came back to the version that scores, or was rolled back."""
        now = registry.routes.get(routed.route.name)
        if now is None or now.revision == routed.revision:
            return False
        release = _release_of(registry, now)
        if self.champion is not None and release is not None and release.manifest_sha256 == self.champion.sha256:
            return True
        # A promotion puts the version before it into the history; a rollback leaves it out. A full one may have dropped it.
        named = {arm.version for arm in (now.route.champion, *now.route.history)}
        return routed.route.champion.version not in named and len(now.route.history) < REMEMBERED

    def _serve(self, fresh: Champion) -> None:
        # What is loaded by now stays. Walked by the garbage collector again and again, it held the loop for 40 ms at a time.
        gc.collect()
        gc.freeze()
        if self.champion is not None:
            self._telemetry.model_swaps.inc()
        with self._handing:
            before, self.champion = self.champion, fresh
            self._hand_over(fresh)
        if before is not None and before.model is not fresh.model and before.model.manifest.memory_bytes > LARGE_BYTES:
            self._leaving = weakref.ref(before.model)
        self._mark("")
        logger.info(
            "model %s version %d is warm after %.2f s and scores from the next chunk on, by route revision %d",
            fresh.name,
            fresh.version,
            fresh.load_seconds,
            fresh.revision,
        )
        self._first.set()

    def _clear_up(self) -> None:
        """Once nobody holds the large model that was replaced, or failed, have its memory given back to the system."""
        if self._leaving is not None and self._leaving() is None:
            self._leaving = None
            give_back()

    def _fail(self, routed: Routed, release: Release | None, error: Exception) -> None:
        if release is not None and release.size_bytes > LARGE_BYTES and self._leaving is None:
            self._leaving = _gone
        if self.champion is None and isinstance(error, SettingsError):
            self._give_up(error)
            return
        step = error.step if isinstance(error, ModelError) and error.step else "route"
        self._telemetry.model_failures.labels(step).inc()
        goes_on = f"version {self.champion.version} goes on" if self.champion else "the worker waits outside the group"
        why = str(error) if isinstance(error, EcluseError) else f"{type(error).__name__}: {cause(error)}."
        what = f"Version {routed.route.champion.version} of model {routed.route.name} does not serve, {goes_on}: {why}"
        if what != self._fault:
            logger.error("%s", what)
        self._mark(what)

    def _give_up(self, error: EcluseError) -> None:
        """Without a model, and with no hope of one, the process must not seem to wait."""
        if self.champion is None:
            self._fatal = error
            self._first.set()
            self._closing.set()
        else:
            self._mark(str(error))
            self._closing.wait(OUTAGE_SECONDS)

    def _mark(self, degraded: str) -> None:
        self._fault = degraded
        self._telemetry.model_degraded.set(bool(self.degraded))

    def _progress(self, version: int) -> Callable[[int, int], None]:
        self.loading = Loading(version, 0.0)
        tell_after = self._clock() + TELL_SECONDS

        def progress(done: int, total: int) -> None:
            nonlocal tell_after
            self.loading = Loading(version, done / max(total, 1))
            if self._clock() >= tell_after:
                tell_after = self._clock() + TELL_SECONDS
                logger.info("version %d: %.0f of %.0f MiB are fetched", version, done / 2**20, total / 2**20)

        return progress

    def _say(self, sentence: str) -> None:
        """Say what lasts once."""
        if sentence != self._said:
            self._said = sentence
            logger.warning("%s", sentence)


def _release_of(registry: Registry, routed: Routed) -> Release | None:
    return registry.releases.get((routed.route.name, routed.route.champion.version))


def _gone() -> None:
    """Of a model that failed, nothing is held."""


def _nobody(champion: Champion) -> None:
    """Who wants it reads `LiveModel.champion`."""
    del champion
