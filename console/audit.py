"""The proof that nothing is missing: every event has one prediction or one dead letter, by the `source` of each."""

import heapq
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

import msgspec
import typer
from confluent_kafka import Consumer, Message

from console.coverage import Tally
from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, print_table, settings_of
from console.reading import SinceOption, Span, batches, headers_of, reader, spans
from ecluse import cluster
from ecluse.contract.codecs import Reader
from ecluse.contract.headers import read_error_headers
from ecluse.contract.records import Source
from ecluse.settings import Settings

if TYPE_CHECKING:
    from console.audit_store import StoreReport

_SAMPLE = 10
#: With `since`, outputs are read from this much earlier, in seconds: the clocks of producers and workers differ.
_CLOCK_SLACK = 600.0


@dataclass(frozen=True, slots=True)
class PartitionAudit:
    """What became of the events from offset `first` to `end` (excluded) of one partition.

    `predictions` and `dead_letters` are outputs of these events, repeated ones included; `doubled` are the repeated ones.
    `missing` events have no output; `missing_offsets` are the first of them. `waiting` offsets lie beyond `end`: not
    scored yet. `expired` events have no output either, but lie before the first output that is still held: it may have been
    deleted. `stray` outputs name no event of this partition (or a record of another topic, as a dead label does).
    """

    partition: int
    first: int
    end: int
    events: int
    predictions: int
    dead_letters: int
    missing: int
    doubled: int
    waiting: int
    expired: int
    stray: int
    missing_offsets: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class AuditReport:
    """The audit of a stream; the totals are sums over its partitions."""

    topic: str
    partitions: tuple[PartitionAudit, ...]
    seconds: float

    @property
    def events(self) -> int:
        """Events in the audited ranges."""
        return sum(row.events for row in self.partitions)

    @property
    def predictions(self) -> int:
        """Predictions of these events, repeated ones included."""
        return sum(row.predictions for row in self.partitions)

    @property
    def dead_letters(self) -> int:
        """Dead letters of these events, repeated ones included."""
        return sum(row.dead_letters for row in self.partitions)

    @property
    def missing(self) -> int:
        """Events with neither a prediction nor a dead letter."""
        return sum(row.missing for row in self.partitions)

    @property
    def doubled(self) -> int:
        """Outputs beyond the first of an event: 0 in exactly-once, allowed in at-least-once."""
        return sum(row.doubled for row in self.partitions)

    @property
    def waiting(self) -> int:
        """Offsets behind the audited ranges: the group's lag."""
        return sum(row.waiting for row in self.partitions)

    @property
    def expired(self) -> int:
        """Events without an output that are older than the outputs still held: nothing can be said of them."""
        return sum(row.expired for row in self.partitions)

    @property
    def stray(self) -> int:
        """Outputs that name no event of their partition."""
        return sum(row.stray for row in self.partitions)

    @property
    def verdict(self) -> str:
        """The result in a sentence."""
        if self.missing:
            text = (
                f"{self.missing:,} of {self.events:,} events are missing: they have no prediction and no dead letter."
            )
        elif not self.events:
            text = "There was no event to audit."
        elif self.doubled:
            text = f"Nothing is missing: each of {self.events:,} events has a prediction or a dead letter."
        else:
            text = f"Nothing is missing: each of {self.events:,} events has exactly one prediction or dead letter."
        if self.doubled:
            text += f" {self.doubled:,} outputs are repetitions (at-least-once allows them)."
        if self.expired:
            text += (
                f" {self.expired:,} events are older than the outputs that are still held: nothing can be said of them."
            )
        if self.stray:
            text += f" {self.stray:,} outputs name no event of their partition, such as dead letters of labels."
        return text + (f" {self.waiting:,} wait to be scored." if self.waiting else "")


def audit(settings: Settings, *, everything: bool = False, since: float | None = None) -> AuditReport:
    """Count what became of every event, from the first held to the workers' committed offset.

    The ends are fixed before it reads, in the order that makes them comparable: what the group has committed had its
    outputs written before. Memory is bounded by the holes in the coverage, not by the number of events.

    Args:
        everything: audit to the end of the events; those that wait to be scored then count as missing.
        since: leave out events that came before, in seconds since 1970.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: a topic is missing.
        BrokerError: records were deleted while they were read.
    """
    began = time.monotonic()
    names = settings.names
    topics = (names.events, names.predictions, names.dead_letters)
    with ExitStack() as stack:
        consumers = [stack.enter_context(closing(reader(settings))) for _ in topics]
        committed = cluster.committed_offsets(settings)
        held = spans(settings, consumers[0], names.events, since)
        earlier = None if since is None else since - _CLOCK_SLACK
        outputs = [
            spans(settings, consumer, topic, earlier) for consumer, topic in zip(consumers[1:], topics[1:], strict=True)
        ]
        rows = []
        for partition, (low, high) in held.items():
            scored = committed.get(partition)
            # Events that were deleted before they were scored are missing too.
            first = low if since is not None or scored is None else min(low, scored)
            end = high if everything else min(high, max(low, scored or 0))
            tally = Tally(first, end)
            wanted = [(low, end), *(output.get(partition, (0, 0)) for output in outputs)]
            counts = _count(settings, consumers, partition, wanted, tally)
            if since is None:
                tally.provable = max(
                    first, *(_first_certain(span, each) for span, each in zip(wanted[1:], counts, strict=True))
                )
            rows.append(_row(partition, tally, counts, high))
    return AuditReport(names.events, tuple(rows), time.monotonic() - began)


@dataclass(slots=True)
class _Outputs:
    counted: int = 0
    stray: int = 0
    first_source: int | None = None


def _first_certain(span: Span, outputs: _Outputs) -> int:
    """The event from which on all outputs of a topic are held: retention has deleted those before the first one."""
    deleted = span[0] > 0
    return outputs.first_source if deleted and outputs.first_source is not None else 0


def _row(partition: int, tally: Tally, counts: tuple[_Outputs, _Outputs], high: int) -> PartitionAudit:
    predictions, dead_letters = counts
    return PartitionAudit(
        partition=partition,
        first=tally.first,
        end=tally.end,
        events=tally.events,
        predictions=predictions.counted,
        dead_letters=dead_letters.counted,
        missing=tally.missing,
        doubled=tally.doubled,
        waiting=high - tally.end,
        expired=tally.expired,
        stray=predictions.stray + dead_letters.stray,
        missing_offsets=tally.sample_of_missing(_SAMPLE),
    )


def _count(
    settings: Settings, consumers: list[Consumer], partition: int, wanted: list[Span], tally: Tally
) -> tuple[_Outputs, _Outputs]:
    """Read the three topics of a partition in step, always the one that is furthest behind, so that holes close soon."""
    names = settings.names
    topics = (names.events, names.predictions, names.dead_letters)
    events, predictions, dead_letters = (
        batches(settings, consumer, topic, {partition: span})
        for consumer, topic, span in zip(consumers, topics, wanted, strict=True)
    )
    counts = _Outputs(), _Outputs()
    of_prediction, of_dead_letter = (
        _prediction_source(names.events, partition),
        _dead_letter_source(names.events, partition),
    )
    feeds = [
        _walk_events(events, wanted[0], tally),
        _walk_outputs(predictions, of_prediction, counts[0], tally),
        _walk_outputs(dead_letters, of_dead_letter, counts[1], tally),
    ]
    behind = [(tally.first, index) for index in range(len(feeds))]
    while behind:
        _, index = heapq.heappop(behind)
        reached = next(feeds[index], None)
        if reached is not None:
            heapq.heappush(behind, (reached, index))
    return counts


def _walk_events(read: Iterator[list[Message]], span: Span, tally: Tally) -> Iterator[int]:
    """Note the offsets at which no event stands; yields the offset reached."""
    expected, end = span
    for batch in read:
        for message in batch:
            offset = message.offset() or 0
            if offset != expected:
                tally.no_events(expected, offset)
            expected = offset + 1
        yield expected
    tally.no_events(expected, end)


def _walk_outputs(
    read: Iterator[list[Message]], source_of: Callable[[Message], int | None], counts: _Outputs, tally: Tally
) -> Iterator[int]:
    """Note outputs by their source; yields the source offset reached."""
    reached = tally.first
    for batch in read:
        offsets = [offset for message in batch if (offset := source_of(message)) is not None]
        counts.stray += len(batch) - len(offsets)
        counts.counted += tally.outputs(offsets)
        if offsets:
            counts.first_source = offsets[0] if counts.first_source is None else counts.first_source
            reached = offsets[-1] + 1
        yield reached


class _Sourced(msgspec.Struct, gc=False):
    """The one field of a `Prediction` that is decoded."""

    source: Source


def _prediction_source(topic: str, partition: int) -> Callable[[Message], int | None]:
    decode = Reader(_Sourced)

    def source_of(message: Message) -> int | None:
        try:
            source = decode(message.value() or b"").source
        except msgspec.DecodeError:
            return None
        return source.offset if source.partition == partition and source.topic == topic else None

    return source_of


def _dead_letter_source(topic: str, partition: int) -> Callable[[Message], int | None]:
    def source_of(message: Message) -> int | None:
        said = read_error_headers(headers_of(message))
        offset = said.get("offset", "")
        matches = said.get("topic") == topic and said.get("partition") == str(partition) and offset.isdecimal()
        return int(offset) if matches else None

    return source_of


def audit_command(
    *,
    everything: bool = typer.Option(
        False, "--all", help="To the end of the events: what waits to be scored is missing."
    ),
    since: SinceOption = None,
    strict: bool = typer.Option(False, "--strict", help="Exit with 1 where an event has more than one output, too."),
    store: bool = typer.Option(False, "--store", help="Hold the training store's tables against their topics, too."),
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Prove that every event has a prediction or a dead letter. Exit code 1: some have none.

    With --store also that every event, prediction, bypass sample and label is in its table once. Exit code 1: it is not.
    """
    settings = settings_of(config, servers)
    report = audit(settings, everything=everything, since=since)
    tables = None
    if store:
        from console.audit_store import audit_store

        tables = audit_store(settings, everything=everything, since=since)
    if json:
        totals = {name: getattr(report, name) for name in _COLUMNS}
        print_json(
            {"topic": report.topic, **totals, "seconds": report.seconds}
            | {"partitions": [asdict(row) for row in report.partitions], "verdict": report.verdict}
            | ({"store": _store_totals(tables)} if tables else {})
        )
    else:
        _print(report)
        if tables:
            _print_store(tables)
    if report.missing or (strict and report.doubled) or (tables and not tables.holds):
        raise typer.Exit(1)


_COLUMNS = ("events", "predictions", "dead_letters", "missing", "doubled", "waiting", "expired", "stray")


def _print(report: AuditReport) -> None:
    columns = [name for name in _COLUMNS if name not in ("expired", "stray") or getattr(report, name)]
    rows: list[list[object]] = [
        [
            row.partition,
            f"{row.first}-{row.end - 1}" if row.end > row.first else "none",
            *(getattr(row, name) for name in columns),
        ]
        for row in report.partitions
    ]
    rows.append(["all", "", *(getattr(report, name) for name in columns)])
    print_table(["partition", "offsets", *(name.replace("_", " ") for name in columns)], rows, title=report.topic)
    for row in report.partitions:
        if row.missing:
            sample = ", ".join(str(offset) for offset in row.missing_offsets)
            more = ", …" if row.missing > len(row.missing_offsets) else ""
            out.print(f"partition {row.partition} misses offsets {sample}{more}", soft_wrap=True)
    style = "bold red" if report.missing else "bold green"
    out.print(report.verdict, style=style, soft_wrap=True)


_STORE_COLUMNS = ("records", "rows", "missing", "doubled", "stray", "rejected", "forgotten", "waiting")


def _store_totals(report: "StoreReport") -> dict[str, object]:
    totals = {name: report.total(name) for name in _STORE_COLUMNS}
    rows = [asdict(row) for row in report.partitions]
    return {"url": report.url, **totals, "seconds": report.seconds, "partitions": rows, "verdict": report.verdict}


def _print_store(report: "StoreReport") -> None:
    """A row a topic, and one for each partition that does not hold what it must."""
    columns = [name for name in _STORE_COLUMNS if name not in ("stray", "rejected", "forgotten") or report.total(name)]
    rows: list[list[object]] = []
    for topic in dict.fromkeys(row.topic for row in report.partitions):
        of_topic = [row for row in report.partitions if row.topic == topic]
        rows.append([topic, of_topic[0].table, *(sum(getattr(row, name) for row in of_topic) for name in columns)])
    print_table(["topic", "table", *columns], rows, title=report.url)
    for row in report.partitions:
        if row.missing:
            sample = ", ".join(str(offset) for offset in row.missing_offsets)
            more = ", …" if row.missing > len(row.missing_offsets) else ""
            out.print(
                f"{row.table} misses offsets {sample}{more} of {row.topic}, partition {row.partition}", soft_wrap=True
            )
        if row.doubled or row.stray:
            wrong = f"{row.doubled} rows doubled and {row.stray} for no record"
            out.print(f"{row.table} has {wrong} of {row.topic}, partition {row.partition}", soft_wrap=True)
    out.print(report.verdict, style="bold green" if report.holds else "bold red", soft_wrap=True)
