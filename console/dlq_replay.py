"""`ecluse dlq replay`: dead letters go back where they came from, once each, in the order in which the events stood."""

import re
import signal
import sys
import threading
from array import array
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from typing import TYPE_CHECKING, Annotated

import typer
from confluent_kafka import Consumer, KafkaError, KafkaException, Message, Producer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from console.output import ConfigOption, JsonOption, ServersOption, err, out, print_json, print_table, say, settings_of
from console.reading import SinceOption, Span, headers_of, printable, reader, records, spans
from ecluse import kafka
from ecluse.contract.headers import (
    ATTEMPTS,
    ORIGINAL_BYTES,
    read_attempts,
    read_error_headers,
    read_replayed_from,
    read_source,
    replay_headers,
)
from ecluse.contract.records import Source
from ecluse.errors import DataError, DeliveryError, Stage, TopicsWrong
from ecluse.settings import Settings

if TYPE_CHECKING:
    import polars as pl

#: A dead letter's partition and offset in its own topic.
Place = tuple[int, int]

_PLACE = re.compile(r"([0-9]{1,9})-([0-9]{1,18})")
#: Refused dead letters that are listed; beyond it they are only counted.
_LISTED = 1_000
#: How far apart two places may be that are still read in one go, and how many are.
_REACH, _LONGEST = 1_000, 100_000
#: How long the broker may take to confirm a record, and what was on its way when the command was stopped, in seconds.
_PATIENCE, _GRACE = 30, 5
#: What a broker says of one record; anything else it would say of the next one too.
_OF_THE_RECORD = (KafkaError.MSG_SIZE_TOO_LARGE, KafkaError.INVALID_RECORD, KafkaError.INVALID_MSG)
_SOURCE = ["source_partition", "source_offset"]
_COLUMNS = [*_SOURCE, "partition", "offset"]


@dataclass(frozen=True, slots=True)
class Refused:
    """A dead letter that was not sent, and why."""

    place: str
    source: str
    reason: str


@dataclass(slots=True)
class Outcome:
    """What became of the dead letters that were chosen."""

    topic: str
    dry_run: bool
    chosen: int = 0
    #: Another dead letter of the same event was chosen too.
    repeated: int = 0
    #: They were replayed before and failed again: the later dead letter stands for them.
    superseded: int = 0
    sendable: int = 0
    replayed: int = 0
    refused: int = 0
    refused_letters: list[Refused] = field(default_factory=list)

    def refuse(self, place: str, source: Source | None, reason: str) -> None:
        """Count a dead letter that is not sent."""
        self.refused += 1
        if len(self.refused_letters) < _LISTED:
            text = f"{source.topic}-{source.partition}-{source.offset}" if source else "?"
            self.refused_letters.append(Refused(place, printable(text, 300), reason))


def place_of(text: str) -> Place:
    """A place as `ecluse dlq list` gives it.

    Raises:
        typer.BadParameter: it is none.
    """
    if found := _PLACE.fullmatch(text):
        return int(found[1]), int(found[2])
    raise typer.BadParameter(f"'{printable(text)}' is no PARTITION-OFFSET, as 3-17.")


def replay(
    places: Annotated[
        list[str] | None,
        typer.Argument(metavar="PARTITION-OFFSET", help="As `ecluse dlq list` gives them.", show_default=False),
    ] = None,
    *,
    stage: Annotated[Stage | None, typer.Option("--stage", help="Those that failed at this stage.")] = None,
    since: SinceOption = None,
    everything: Annotated[bool, typer.Option("--all", help="All that the topic holds.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Send nothing; say what would be sent.")] = False,
    max_attempts: Annotated[
        int, typer.Option("--max-attempts", min=1, help="Refuse what was replayed as often and came back each time.")
    ] = 3,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Send dead letters back to the events topic, as the events that they were. Sent twice, they are scored twice."""
    filtered = stage is not None or since is not None
    if bool(places) + filtered + everything != 1:
        raise typer.BadParameter("choose by PARTITION-OFFSET (`ecluse dlq list`), by --stage and --since, or by --all")
    named = sorted({place_of(text) for text in places or ()})
    settings = settings_of(config, servers)
    topic, outcome = settings.names.dead_letters, Outcome(settings.names.events, dry_run)
    with closing(reader(settings)) as consumer:
        held = spans(settings, consumer, topic, since)
        with _bar("reading", len(named) or sum(end - start for start, end in held.values())) as advance:
            letters = fetch(settings, consumer, held, named) if named else records(settings, consumer, topic, held)
            order = _choose(settings, letters, stage, max_attempts, outcome, advance)
        if not dry_run:
            _send(settings, consumer, held, order, outcome)
    _print(settings, outcome, json)
    if outcome.refused:
        raise typer.Exit(1)


def fetch(
    settings: Settings, consumer: Consumer, held: Mapping[int, Span], places: Iterable[Place]
) -> Iterator[Message]:
    """The dead letters at these places, in this order; `held` is what the topic holds.

    Raises:
        DataError: there is none at one of them.
    """
    for number, run in _runs(places):
        start, end = held.get(number, (0, 0))
        expected = iter(run)
        offset = next(expected, None)
        span = max(start, run[0]), min(end, run[-1] + 1)
        for letter in records(settings, consumer, settings.names.dead_letters, {number: span}):
            if letter.offset() == offset:
                yield letter
                offset = next(expected, None)
        if offset is not None:
            raise DataError(f"There is no dead letter at {number}-{offset}: `ecluse dlq list` shows which there are.")


def _runs(places: Iterable[Place]) -> Iterator[tuple[int, list[int]]]:
    """Places in stretches of one partition that can be read in one go: a partition and its offsets, ascending."""
    number, run = -1, list[int]()
    for found, offset in places:
        if run and (found != number or not 0 < offset - run[-1] <= _REACH or len(run) == _LONGEST):
            yield number, run
            run = []
        number = found
        run.append(offset)
    if run:
        yield number, run


def _choose(
    settings: Settings,
    letters: Iterable[Message],
    stage: Stage | None,
    max_attempts: int,
    outcome: Outcome,
    advance: Callable[[], None],
) -> "pl.DataFrame":
    """Where the dead letters stand that are to be sent, one an event, in the order of the events.

    Only numbers are kept of each, so that a million need 32 MB; they are fetched again to be sent.
    """
    partitions = kafka.partition_counts(settings).get(outcome.topic)
    if partitions is None:
        raise TopicsWrong([f"The topic {outcome.topic} is missing: `ecluse topics create` makes it."])
    good, replayed = array("q"), array("q")
    for letter in letters:
        advance()
        headers = headers_of(letter)
        earlier = read_replayed_from(headers)
        if earlier is not None and earlier.topic == outcome.topic:
            replayed.extend((earlier.partition, earlier.offset))
        if stage is not None and read_error_headers(headers).get("stage") != stage:
            continue
        outcome.chosen += 1
        source, number, offset = read_source(headers), letter.partition() or 0, letter.offset() or 0
        fault = _fault(letter, source, outcome.topic, partitions, max_attempts)
        if source is None or fault:
            outcome.refuse(f"{number}-{offset}", source, fault or "")
        else:
            good.extend((source.partition, source.offset, number, offset))
    return _ordered(good, replayed, outcome)


def _ordered(good: Sequence[int], replayed: Sequence[int], outcome: Outcome) -> "pl.DataFrame":
    import numpy as np
    import polars as pl

    found = pl.DataFrame(np.array(good, np.int64).reshape(-1, 4), schema=_COLUMNS, orient="row")
    failed_again = pl.DataFrame(np.array(replayed, np.int64).reshape(-1, 2), schema=_SOURCE, orient="row")
    once = found.sort(_COLUMNS).unique(_SOURCE, keep="first", maintain_order=True)
    order = once.join(failed_again, on=_SOURCE, how="anti").sort(_SOURCE)
    outcome.repeated = found.height - once.height
    outcome.superseded = once.height - order.height
    outcome.sendable = order.height
    return order


def _fault(letter: Message, source: Source | None, events: str, partitions: int, max_attempts: int) -> str | None:
    """Why a dead letter must not be sent; None where it may be."""
    headers = headers_of(letter)
    attempts = read_attempts(headers)
    if source is None:
        return "Its error headers do not say which event it was."
    if source.topic != events:
        return "It was no event of this stream."
    if source.partition >= partitions:
        return f"The events topic has no partition {source.partition}."
    if any(name == ORIGINAL_BYTES for name, _ in headers):
        return "It was too large to be kept whole: the original bytes are gone."
    if attempts is None:
        return f"Its header {ATTEMPTS} is no number."
    if attempts >= max_attempts:
        return f"It was replayed {attempts:,} times and came back each time (--max-attempts)."
    return None


def _send(
    settings: Settings, consumer: Consumer, held: Mapping[int, Span], order: "pl.DataFrame", outcome: Outcome
) -> None:
    with _bar("sending", order.height) as advance, _held_interrupt() as interrupted:
        sender = _Sender(settings, outcome, advance, interrupted)
        try:
            letters = fetch(settings, consumer, held, order.select("partition", "offset").iter_rows())
            for letter, source in zip(letters, order.select(_SOURCE).iter_rows(), strict=True):
                sender.send(letter, Source(outcome.topic, *source))
            sender.finish()
        except BaseException:
            unknown = sender.stop()
            more = f"; {unknown:,} more may have arrived, unconfirmed" if unknown else ""
            say(f"Stopped: {outcome.replayed:,} of {order.height:,} dead letters are sent and confirmed{more}.")
            raise


class _Sender:
    """Sends dead letters as the events that they were, and counts what the broker says of each."""

    def __init__(
        self, settings: Settings, outcome: Outcome, advance: Callable[[], None], interrupted: Callable[[], bool]
    ) -> None:
        limits = {
            # The bound on what waits to be confirmed: dead letters may have megabytes each.
            "queue.buffering.max.messages": 10_000,
            "queue.buffering.max.kbytes": 64 * 1024,
            "batch.size": min(1 << 20, settings.topics.max_message_bytes),
            "message.timeout.ms": _PATIENCE * 1000,
            # One that the broker refuses must not end the others.
            "enable.gapless.guarantee": False,
        }
        self._producer = Producer(kafka.producer_config(settings) | limits)
        self._outcome = outcome
        self._advance = advance
        self._interrupted = interrupted
        self._unknown = 0
        self._failure: KafkaError | None = None

    def send(self, letter: Message, source: Source) -> None:
        """Hand a dead letter over; wait where too many are unconfirmed.

        Raises:
            DeliveryError: the broker does not take or confirm what it is sent.
        """
        headers = headers_of(letter)
        settle = partial(self._settle, f"{letter.partition()}-{letter.offset()}", source)
        event = replay_headers(headers, source, (read_attempts(headers) or 0) + 1)
        while True:
            try:
                self._producer.produce(
                    source.topic, letter.value(), letter.key(), source.partition, headers=event, on_delivery=settle
                )
                break
            except BufferError:
                self._poll(0.1)
            except KafkaException as error:
                settle(error.args[0], None)
                break
        self._poll(0)

    def finish(self) -> None:
        """Wait until everything is confirmed or refused; raises as `send` does."""
        while len(self._producer):
            self._poll(0.1)
        self._poll(0)

    def stop(self) -> int:
        """Wait a moment for what was handed over, take back what did not leave; how many may have arrived, unconfirmed."""
        if self._failure is None:
            self._producer.flush(_GRACE)
        with suppress(KafkaException):  # after a fatal error there is nothing left to take back
            self._producer.purge(in_queue=True, in_flight=False)
            self._producer.flush(_GRACE)
        return self._unknown + len(self._producer)

    def _poll(self, seconds: float) -> None:
        self._producer.poll(seconds)
        if self._interrupted():
            raise KeyboardInterrupt
        if self._failure:
            raise DeliveryError(self._outcome.topic, f"{self._failure.str()}.")

    def _settle(self, place: str, source: Source, error: KafkaError | None, _: Message | None) -> None:
        if error is None:
            self._outcome.replayed += 1
        elif error.code() in _OF_THE_RECORD:
            self._outcome.refuse(place, source, f"The broker refused it: {error.str()}.")
        elif error.code() != KafkaError._PURGE_QUEUE:
            self._unknown += 1
            self._failure = self._failure or error
        self._advance()


@contextmanager
def _held_interrupt() -> Iterator[Callable[[], bool]]:
    """Ctrl-C as something to ask for: in the midst of a delivery report the client library would lose the exception."""
    asked = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: asked.set())
    try:
        yield asked.is_set
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def _bar(what: str, total: int) -> Iterator[Callable[[], None]]:
    """A progress bar on stderr, where that is a terminal; call what it yields for each one that is done."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bar:
        yield partial(bar.advance, bar.add_task("", total=total))


def _print(settings: Settings, outcome: Outcome, as_json: bool) -> None:
    if as_json:
        print_json(asdict(outcome))
        return
    prefix = settings.names.prefix
    if outcome.refused:
        rows = [(x.place, x.source.removeprefix(prefix), x.reason) for x in outcome.refused_letters]
        print_table(("place", "source", "refused because"), rows)
        if outcome.refused > len(rows):
            out.print(f"and {outcome.refused - len(rows):,} more")
    notes = [
        f"{outcome.refused:,} refused" if outcome.refused else "",
        f"{outcome.repeated:,} left out as repetitions of the same event" if outcome.repeated else "",
        f"{outcome.superseded:,} left out as replayed before: a later dead letter stands for each"
        if outcome.superseded
        else "",
    ]
    said = "".join(f", {note}" for note in notes if note)
    number, verb = (outcome.sendable, "would be sent") if outcome.dry_run else (outcome.replayed, "sent")
    text = f"{number:,} of {outcome.chosen:,} dead letters {verb} to {outcome.topic}{said}."
    out.print(text, markup=False, soft_wrap=True)
