"""Writing to the models topic: releases, which of them is champion, the bypass switch, and what the trainer made of requests.

Writers take turns: each opens the same transactional id, which fences the one before it; then nothing older can still be
written, so it reads the topic to its end, decides by what is there, writes and commits. A fenced one tries again, from its
reading on: two people who promote at once never lose each other's change. So does one that was not told whether its commit
arrived, and where it finds what it wrote, it is done.
"""

import logging
import time
from collections.abc import Callable, Sequence
from contextlib import suppress

from confluent_kafka import KafkaError, KafkaException, Message, Producer
from tenacity import Retrying, retry_if_exception, stop_after_delay, wait_random_exponential

from ecluse import kafka
from ecluse.contract.codecs import content_headers, encoder
from ecluse.contract.loop import Run, RunState
from ecluse.contract.records import Arm, Release, Route, Switch
from ecluse.errors import BrokerError, DeliveryError, ModelNotFound, ModelRefused, RouteChanged, SwitchChanged
from ecluse.model.registry import READ_SECONDS, Registry, RegistryReader, Routed
from ecluse.settings import Settings

log = logging.getLogger(__name__)

#: How long a writer waits for its turn, in seconds.
_DEADLINE = 60.0
#: How many former champions a route remembers.
REMEMBERED = 10
#: What a fenced client logs as fatal is here another writer's turn, and errors reach us by the calls.
_client_log = logging.getLogger(f"{__name__}.client")
_client_log.addHandler(logging.NullHandler())
_client_log.propagate = False
_FENCED = frozenset({KafkaError._FENCED, KafkaError.INVALID_PRODUCER_EPOCH, KafkaError.PRODUCER_FENCED})

Written = Release | Route | Run | Switch
Decide = Callable[[Registry], Sequence[Written]]


def announce(settings: Settings, release: Release, champion: Arm | None = None) -> int | None:
    """Write a release and, with `champion`, the route that has it score the stream: both or neither.

    Returns:
        The route's revision; None where no route was written, because none was wanted or a newer version is champion.

    Raises:
        ModelRefused: the version is released already, with another artefact.
        BrokerError: the topic could not be read or written.
    """

    def decide(registry: Registry) -> Sequence[Written]:
        _require_free(registry, release)
        routed = registry.routes.get(release.name)
        if champion is None or (routed is not None and routed.route.champion.version > release.version):
            return [release]
        return [release, promoted(release.name, routed, champion)]

    return _write(settings, decide).get(f"route/{release.name}")


def record_run(
    settings: Settings,
    run: Run,
    *,
    ours: Run | None = None,
    release: Release | None = None,
    merged: Sequence[Run] = (),
) -> bool:
    """Write what becomes of a request, with the release that answers it and what becomes of those merged into it: all or
    nothing, and never a route.

    Args:
        settings: the stream's.
        run: of the request.
        ours: the run that stands on the topic where nobody else has taken the request up; None: it is taken from whoever has.
        release: what was made of the request.
        merged: of the other requests; those that have their answer already keep it.

    Returns:
        Whether it stands there, by this call or by one before that was not told so; it does not where the request has another
        answer, or is another's by now.

    Raises:
        ModelRefused: the release's version is released already, with another artefact.
        BrokerError: the topic could not be read or written.
    """
    stands = False

    def decide(registry: Registry) -> Sequence[Written]:
        nonlocal stands
        found = registry.runs.get((run.name, run.request))
        stands = found == run
        answered = found is not None and found.state is not RunState.TRAINING
        if stands or answered or (ours is not None and found != ours):
            return []
        decided: list[Written] = [run]
        if release is not None:
            _require_free(registry, release)
            decided.insert(0, release)
        for other in merged:
            told = registry.runs.get((other.name, other.request))
            if told is None or told.state is RunState.TRAINING:
                decided.append(other)
        stands = True
        return decided

    _write(settings, decide)
    return stands


def promote(settings: Settings, champion: Arm, seen: int | None) -> int:
    """Make a released version the champion, by the route's new revision. All other arms stay as they are.

    Args:
        settings: the stream's.
        champion: the arm.
        seen: the revision of the route on which the decision to promote was based; None where there was none.

    Raises:
        ModelNotFound: the version was never released.
        RouteChanged: the route is another by now.
        BrokerError: the topic could not be read or written.
    """
    name = settings.model_name

    def decide(registry: Registry) -> Sequence[Written]:
        require_release(registry, name, champion.version)
        return [promoted(name, _unchanged(registry, name, seen), champion)]

    return _write(settings, decide)[f"route/{name}"]


def rollback(settings: Settings, seen: int) -> int:
    """Make the champion before this one the champion again, by the route's new revision; once more, the one before that.

    Args:
        settings: the stream's.
        seen: the revision of the route on which the decision to roll back was based.

    Raises:
        ModelNotFound: the route remembers no champion, or its release was taken back.
        RouteChanged: the route is another by now.
        BrokerError: the topic could not be read or written.
    """
    name = settings.model_name

    def decide(registry: Registry) -> Sequence[Written]:
        routed = _unchanged(registry, name, seen)
        route = rolled_back(name, routed)
        require_release(registry, name, route.champion.version)
        return [route]

    return _write(settings, decide)[f"route/{name}"]


def set_switch(settings: Settings, switch: Switch, seen: int | None) -> int:
    """Set the bypass switch of the stream's model; it takes effect by its new revision, which is returned.

    Args:
        settings: the stream's.
        switch: of the stream's model.
        seen: the revision of the switch on which the decision was based; None where there was none.

    Raises:
        SwitchChanged: the switch is another by now.
        BrokerError: the topic could not be read or written.
    """

    def decide(registry: Registry) -> Sequence[Written]:
        switched = registry.switches.get(switch.name)
        now = None if switched is None else switched.revision
        if now != seen:
            raise SwitchChanged(switch.name, now, None if switched is None else switched.switch.share)
        return [switch]

    return _write(settings, decide)[switch.key]


def promoted(name: str, routed: Routed | None, champion: Arm) -> Route:
    """The route with another champion; the one before is the latest of its history."""
    if routed is None:
        return Route(name, (champion,), time.time())
    route = routed.route
    earlier = route.history if route.champion == champion else (route.champion, *route.history)[:REMEMBERED]
    return Route(name, (champion, *route.arms[1:]), time.time(), route.shadows, earlier)


def rolled_back(name: str, routed: Routed | None) -> Route:
    """The route with the champion before, who is in its history no more.

    Raises:
        ModelNotFound: there is none.
    """
    if routed is None or not routed.route.history:
        raise ModelNotFound(f"The route of model {name} remembers no earlier champion.")
    route = routed.route
    return Route(name, (route.history[0], *route.arms[1:]), time.time(), route.shadows, route.history[1:])


def require_release(registry: Registry, name: str, version: int) -> Release:
    """What the models topic says of a version.

    Raises:
        ModelNotFound: it was never released.
    """
    if (name, version) not in registry.releases:
        raise ModelNotFound(f"Version {version} of model {name} was never released.")
    return registry.releases[name, version]


def _require_free(registry: Registry, release: Release) -> None:
    taken = registry.releases.get((release.name, release.version))
    if taken is not None and taken.manifest_sha256 != release.manifest_sha256:
        raise ModelRefused(f"Version {release.version} of model {release.name} is released already.")


def _unchanged(registry: Registry, name: str, seen: int | None) -> Routed | None:
    routed = registry.routes.get(name)
    now = None if routed is None else routed.revision
    if now != seen:
        raise RouteChanged(name, now, None if routed is None else routed.route.champion.version)
    return routed


def _write(settings: Settings, decide: Decide) -> dict[str, int]:
    """Write what is decided by all that is on the topic; the offset of each record, by its key."""
    topic = settings.names.models
    retrying = Retrying(
        stop=stop_after_delay(_DEADLINE),
        # Writers that come back at once would fence each other for ever.
        wait=wait_random_exponential(multiplier=0.5, max=5.0),
        retry=retry_if_exception(_passes),
        before_sleep=lambda _: log.info(
            "Another writer of %s took its turn, or the broker is slow; trying again.", topic
        ),
        reraise=True,
    )
    tried: list[Written] = []
    try:
        return retrying(_turn, settings, decide, tried)
    except KafkaException as error:
        raise DeliveryError(topic, error.args[0].str()) from error


def _passes(error: BaseException) -> bool:
    """Whether a new turn may do what this one did not."""
    if not isinstance(error, KafkaException):
        return False
    cause = error.args[0]
    return cause.code() in _FENCED or cause.retriable() or cause.txn_requires_abort()


def _turn(settings: Settings, decide: Decide, tried: list[Written]) -> dict[str, int]:
    """One turn. `tried` is what the turn before tried to write, and may have written."""
    config = kafka.producer_config(settings) | {
        "transactional.id": f"{settings.names.prefix}route",
        "transaction.timeout.ms": 10_000,
        "message.timeout.ms": 10_000,
        "logger": _client_log,
    }
    with RegistryReader(settings) as reader:
        # Not as a context: confluent-kafka 2.15 ends that of a producer fenced at its commit with a SystemError.
        producer = Producer(config)
        producer.init_transactions(kafka.PATIENCE)
        # Only now nothing older can still be written: read what is there.
        registry = reader.read_to_end(READ_SECONDS)
        if tried and all(registry.holds(record) for record in tried):
            return registry.revisions(tried)
        tried[:] = decide(registry)
        if not tried:
            return {}
        producer.begin_transaction()
        try:
            offsets = _produce(producer, settings, tried)
            producer.commit_transaction(kafka.PATIENCE)
        except BaseException:
            with suppress(KafkaException):  # else the broker ends it, and readers wait for that
                producer.abort_transaction(kafka.PATIENCE)
            raise
        with suppress(BrokerError):  # a commit is final before it can be read: who reads after us shall find it
            reader.read_to(max(offsets.values()) + 1, kafka.PATIENCE)
    return offsets


def _produce(producer: Producer, settings: Settings, records: Sequence[Written]) -> dict[str, int]:
    """Produce the records. Once the transaction is committed, what is returned holds the offset of each, by its key."""
    encoding = settings.stream.encoding
    encode = encoder(encoding)
    offsets: dict[str, int] = {}

    def delivered(error: KafkaError | None, message: Message) -> None:
        offset = message.offset()
        if error is None and offset is not None:
            offsets[(message.key() or b"").decode()] = offset

    for record in records:
        producer.produce(
            settings.names.models,
            key=record.key,
            value=encode(record),
            headers=content_headers(encoding),
            partition=0,
            on_delivery=delivered,
        )
    return offsets
