"""The trainer: takes what is asked for, has it trained, and publishes what comes of it. Start reading here.

    open requests -> the newest, the others merged into it -> Run(training) -> `run.make` -> Release and Runs, all or nothing

A request is open until a finished run of it stands on the models topic. So whoever dies at whatever moment, the next trainer
finds what is open; and who was taken for dead finds at the end that the request is another's, and publishes nothing.
"""

import logging
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, TypeVar

import msgspec
from confluent_kafka import KafkaException

from ecluse import cluster, kafka
from ecluse.contract.loop import Run, RunState
from ecluse.errors import BrokerError, DataError, EcluseError, NothingToLearn, SettingsError, StoreConflict, cause
from ecluse.health import HealthServer
from ecluse.model.registry import READ_SECONDS, Registry, RegistryReader
from ecluse.model.routes import record_run
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from ecluse.store.delta import TrainingStore
from retrain.publish import require_key
from retrain.trainer.election import Election
from retrain.trainer.requests import Turn, choose, open_requests
from retrain.trainer.run import Bar, Made, folder_of, log_of, make
from retrain.trainer.telemetry import TrainerHealth, TrainerTelemetry

log = logging.getLogger(__name__)

T = TypeVar("T")
Tell = Callable[[Run], None]

#: How long the trainer that is told to end waits to be elected, and for trouble to pass, in seconds.
_ONCE_SECONDS = 120.0
_LOOK_SECONDS = 1.0


class Superseded(Exception):
    """The request is another trainer's by now."""


def run_trainer(settings: Settings, tell: Tell, bar: Bar, *, once: bool = False) -> bool:
    """Train what is asked for, until the process is stopped.

    Args:
        settings: the stream's.
        tell: gets each run that has ended.
        bar: opens what shows how far a set has come.
        once: return when nothing is open any more.

    Returns:
        Whether no run failed.

    Raises:
        SettingsError: a key, a folder or the address of the metrics cannot be used.
        TopicsWrong: the topics are not as the stream needs them.
        StoreError, ModelError: a store's location cannot be used.
        BrokerError: the requests cannot be followed; with `once`, also where trouble does not pass, or another trainer trains.
    """
    require_ready(settings)
    telemetry = TrainerTelemetry()
    with ExitStack() as stack:
        election = Election(settings)
        health = TrainerHealth(election)
        host, port = settings.trainer.metrics_host, settings.trainer.metrics_port
        server = stack.enter_context(HealthServer(telemetry.registry, health, host, port, section="trainer"))
        log.info("metrics and health at http://%s (/metrics, /health/live, /health/ready)", server.address)
        (cluster.require_topics if once else _once_topics_are_there)(settings)
        reader = stack.enter_context(RegistryReader(settings))
        stack.enter_context(election)
        trainer = Trainer(settings, election, reader, telemetry, health, once=once)
        return trainer.run(tell, bar)


def require_ready(settings: Settings) -> None:
    """What no training can do without, asked before the first.

    Raises: as `run_trainer`.
    """
    require_key(settings)
    ModelStore.of(settings)
    TrainingStore(settings)
    try:
        settings.trainer.runs.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SettingsError([f"trainer.runs: {settings.trainer.runs} cannot be made: {error.strerror}."]) from error


def _once_topics_are_there(settings: Settings) -> None:
    kafka.once_reachable(cluster.require_topics, settings)


@dataclass(frozen=True)
class Failure:
    """Why a run failed, in a sentence; `of_request`: as of its cut-off there is nothing to train on, say."""

    reason: str
    of_request: bool = False


class Trainer:
    """Trains one request after the other. Used by one thread."""

    def __init__(
        self,
        settings: Settings,
        election: Election,
        reader: RegistryReader,
        telemetry: TrainerTelemetry,
        health: TrainerHealth,
        *,
        once: bool,
    ) -> None:
        self._settings, self._election, self._reader = settings, election, reader
        self._telemetry, self._health, self._once = telemetry, health, once
        self._ours: Run | None = None

    def run(self, tell: Tell, bar: Bar) -> bool:
        """Train what is asked for; arguments, result and errors as of `run_trainer`."""
        sound = True
        while (turn := self._next()) is not None:
            self._telemetry.training.set(1)
            try:
                ended = self._train(turn, bar)
            except Superseded as superseded:
                log.warning("%s: %s Nothing was published.", turn.request.id, superseded)
                continue
            finally:
                self._ours = None
                self._telemetry.training.set(0)
            for run in ended:
                self._telemetry.runs.labels(run.state.value).inc()
                tell(run)
                sound &= run.state is not RunState.FAILED
        return sound

    def check(self) -> None:
        """Make sure that what is being trained is still ours.

        Raises:
            Superseded: it is not.
            BrokerError: nobody could tell any more.
        """
        self._election.require_sound()
        if self._election.elected is False:
            raise Superseded("Another trainer is elected.")
        self._reader.catch_up()
        ours = self._ours
        if ours is not None and self._reader.registry.runs.get((ours.name, ours.request)) != ours:
            raise Superseded("Another trainer has taken the request up.")

    def patiently(self, call: Callable[..., T], *args: Any) -> T:
        """Call, and again for as long as the broker or the store is in a trouble that passes.

        Raises:
            BrokerError, StoreConflict: with `once`, when that takes too long.
            Superseded: meanwhile the request has become another's.
        """
        deadline = time.monotonic() + _ONCE_SECONDS
        while True:
            try:
                result = call(*args)
            except (BrokerError, StoreConflict, KafkaException) as error:
                if self._once and time.monotonic() > deadline:
                    raise
                self._election.require_sound()
                told = error.args[0].str() if isinstance(error, KafkaException) else str(error)
                self._health.trouble = told
                log.warning("%s It is waited for.", told)
                time.sleep(kafka.LOOK_FOR_BROKER)
                if self._election.elected is False:
                    raise Superseded("Another trainer is elected.") from error
            else:
                self._health.trouble = ""
                return result

    def _next(self) -> Turn | None:
        """Wait for a request; None where there is none, and nobody waits for more."""
        deadline = time.monotonic() + _ONCE_SECONDS
        while True:
            self._election.require_sound()
            self._telemetry.elected.set(self._election.elected is True)
            requests = self._election.requests()
            if requests is not None:
                waiting = open_requests(requests, self._reader.registry.runs)
                if waiting:  # asked again: what this one has read may be old
                    try:
                        waiting = open_requests(requests, self._registry().runs)
                    except Superseded:  # in a trouble that was waited out
                        continue
                self._telemetry.waiting.set(len(waiting))
                if waiting or self._once:
                    return choose(waiting)
            elif self._once and time.monotonic() > deadline:
                raise BrokerError("Another trainer is elected: it trains what is asked for.")
            self._election.wait(_LOOK_SECONDS)

    def _registry(self) -> Registry:
        return self.patiently(self._reader.read_to_end, READ_SECONDS)

    def _train(self, turn: Turn, bar: Bar) -> list[Run]:
        """Train a request, and write what became of it; the runs that have ended by it."""
        request, began = turn.request, time.time()
        merged = f"; merged into it: {', '.join(each.id for each in turn.merged)}" if turn.merged else ""
        log.info("%s: %s asks for a new version: %s%s", request.id, request.asker.value, request.reason, merged)
        ours = Run(
            name=request.model,
            request=request.id,
            state=RunState.TRAINING,
            trainer=kafka.member_name(),
            started_at=began,
            log=log_of(self._settings, request),
        )
        if not self.patiently(lambda: record_run(self._settings, ours)):
            raise Superseded("It has its answer.")
        self._registry()
        self._ours = ours
        made = self._made(turn, bar)
        return self._finish(turn, ours, made)

    def _made(self, turn: Turn, bar: Bar) -> Made | Failure:
        """What was made of a request, or why nothing was."""
        try:
            return make(self._settings, turn.request, folder_of(self._settings, turn.request), self, bar)
        except (BrokerError, KafkaException, Superseded):
            raise
        except EcluseError as error:
            log.error("%s: failed: %s", turn.request.id, error)
            return Failure(str(error), of_request=isinstance(error, (DataError, NothingToLearn)))
        except Exception as error:
            log.exception("%s: failed", turn.request.id)
            return Failure(f"{type(error).__name__}: {cause(error)}.")

    def _finish(self, turn: Turn, ours: Run, made: Made | Failure) -> list[Run]:
        """Write the end of a run, and of those merged into it: of these too where it failed, or a broken script would run for
        each. Only what was wrong with the request itself leaves them open."""
        deadline = time.monotonic() + _ONCE_SECONDS
        while self._election.elected is None:  # nobody can tell whether it is ours: the group decides again
            self._election.require_sound()
            if self._once and time.monotonic() > deadline:
                raise BrokerError("The trainers' group does not decide who is elected.")
            self._election.wait(_LOOK_SECONDS)
        self.check()
        ended = {"ended_at": time.time()}
        if isinstance(made, Failure):
            run = msgspec.structs.replace(ours, state=RunState.FAILED, reason=made.reason, **ended)
        else:
            run = msgspec.structs.replace(ours, state=RunState.PUBLISHED, version=made.release.version, **ended)
        others = [
            msgspec.structs.replace(ours, state=RunState.MERGED, request=other.id, into=run.request, log="", **ended)
            for other in (() if isinstance(made, Failure) and made.of_request else turn.merged)
        ]
        release = None if isinstance(made, Failure) else made.release
        if not self.patiently(lambda: record_run(self._settings, run, ours=ours, release=release, merged=others)):
            raise Superseded("Another trainer has taken the request up.")
        self._telemetry.seconds.observe(run.ended_at - run.started_at if run.ended_at else 0.0)
        if release is not None:
            log.info("%s: version %d is released; to promote it is a person's to do", run.request, release.version)
        return [run, *others]
