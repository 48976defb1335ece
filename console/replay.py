"""`ecluse replay`: a past range of events scored again with any version, and its decisions held against those made."""

import datetime as dt
import secrets
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, cast

import typer
from confluent_kafka import Consumer, Message

from console.output import ConfigOption, JsonOption, ServersOption, progress_bar, settings_of
from console.reading import batches, clock_time, moment, reader, spans
from console.replay_result import Range, Replayed
from ecluse import cluster
from ecluse.errors import DataError
from ecluse.model.registry import read_registry
from ecluse.settings import Settings

if TYPE_CHECKING:
    from console.replay_past import Outputs
    from ecluse.transport.ledger import Record

#: Outputs are read from this much before the range on, in seconds: the clocks of producers and workers differ.
_CLOCK_SLACK = 600.0


def replay(settings: Settings, version: int, since: float, until: float) -> Replayed:
    """Score the events of a range again, write the predictions to the topic of replays, and compare.

    Args:
        settings: the stream's.
        version: of the stream's model; any that was released.
        since: when the first of them arrived at the broker, in seconds since 1970.
        until: from when on they are left out.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: the stream's topics, or the topic of replays, are not as they must be.
        DataError: no event arrived in the range, or none is held any more.
        ModelError: the version was never released, must not be loaded, or fails on every event.
        DeliveryError: a prediction was not confirmed.
        BrokerError: records were deleted while they were read.
    """
    from console.replay_compare import Comparison, PastThresholds
    from scoring.replaying import Rescorer, SideTopic, load_version

    run = f"v{version}-{dt.datetime.now(dt.UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"
    cluster.require_topics(settings)
    registry = read_registry(settings)
    with ExitStack() as stack:
        consumers = [stack.enter_context(closing(reader(settings))) for _ in range(3)]
        committed = cluster.committed_offsets(settings)
        wanted = _find_range(settings, consumers[0], since, until)
        with progress_bar("fetching the model") as fetched:
            champion = load_version(settings, version, registry, fetched)
        cluster.require_replays(settings)
        began = time.monotonic()
        comparison = Comparison(PastThresholds(settings, registry))
        done = Replayed(run, champion, settings.names.replays, wanted, comparison)
        advance = stack.enter_context(progress_bar("scoring again"))
        rescorer = Rescorer(settings, champion, stack.enter_context(SideTopic(settings, run)))
        passed = 0
        for partition, read, outputs in _feeds(settings, consumers, wanted):
            start, end = wanted.spans[partition]
            for batch in read:
                reached = (batch[-1].offset() or 0) + 1
                then = {offset: past for each in outputs for offset, past in each.up_to(reached).items()}
                comparison.add(then, rescorer(partition, cast("list[Record]", batch)), committed.get(partition) or 0)
                advance(passed + reached - start, wanted.offsets)
            passed += end - start
            if (
                partition in wanted.cut
            ):  # elsewhere they are of events that arrived before the range, and were scored in it
                done.gone += sum(each.earlier for each in outputs)
    _require_events(settings, wanted, comparison.events)
    done.seconds = time.monotonic() - began
    return done


def _find_range(settings: Settings, consumer: Consumer, since: float, until: float) -> Range:
    """The events that arrived in the range, by the offsets that Kafka finds for its times."""
    topic = settings.names.events
    held = spans(settings, consumer, topic)
    starts, ends = (spans(settings, consumer, topic, when) for when in (since, until))
    found = {}
    for partition, (_, high) in held.items():
        start, end = starts[partition][0], min(ends[partition][0], high)
        found[partition] = (start, max(start, end))  # events may come while Kafka is asked
    cut = frozenset(partition for partition, (low, _) in held.items() if 0 < low == found[partition][0])
    wanted = Range(since, until, found, cut)
    _require_events(settings, wanted, wanted.offsets)
    return wanted


def _require_events(settings: Settings, wanted: Range, events: int) -> None:
    if not events:
        deleted = "; earlier ones are deleted (topics.retention_hours)" if wanted.cut else ""
        raise DataError(f"There is no event of {settings.names.events} that arrived {wanted.words}{deleted}.")


def _feeds(
    settings: Settings, consumers: list[Consumer], wanted: Range
) -> Iterator[tuple[int, Iterator[list[Message]], list["Outputs"]]]:
    """Each partition with its events in batches, and with what came of them in the past: dead letters, then predictions."""
    from console.replay_past import Outputs, prediction_reader, read_dead_letter

    events = settings.names.events
    topics = (settings.names.dead_letters, settings.names.predictions)
    decoders = (read_dead_letter, prediction_reader())
    # Each asked by the consumer that will read: it then knows the leaders, and waits for none.
    held = [
        spans(settings, consumer, topic, wanted.since - _CLOCK_SLACK)
        for consumer, topic in zip(consumers[1:], topics, strict=True)
    ]
    for partition, span in wanted.spans.items():
        start = span[0]
        outputs = [
            Outputs(
                batches(settings, consumer, topic, {partition: there[partition]}),
                decode,
                (events, partition),
                start,
                wanted.since,
            )
            for consumer, topic, decode, there in zip(consumers[1:], topics, decoders, held, strict=True)
        ]
        if partition in wanted.cut:  # what is left of deleted events stands before the others
            for each in outputs:
                each.up_to(start)
        yield partition, batches(settings, consumers[0], events, {partition: span}), outputs


_TIME_HELP = "(2026-03-01T12:00:00Z; UTC without a zone), or a duration before now (30s, 15m, 2h, 7d)."


def replay_command(
    *,
    since: Annotated[
        float, typer.Option("--from", parser=moment, metavar="TIME", help=f"When the first event arrived {_TIME_HELP}")
    ],
    until: Annotated[
        float, typer.Option("--to", parser=moment, metavar="TIME", help=f"The end of the range, excluded {_TIME_HELP}")
    ],
    model: Annotated[int, typer.Option("--model", min=1, metavar="N", help="A released version of the model.")],
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the comparison.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Score a past range of events again with any released version, beside the stream, and compare the decisions."""
    if since >= until:
        raise typer.BadParameter(f"--from ({clock_time(since)} UTC) must lie before --to ({clock_time(until)} UTC)")
    if until > time.time():
        raise typer.BadParameter(f"--to ({clock_time(until)} UTC) lies in the future: a replay has an end that is past")
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.absolute().parent.is_dir()):
        raise typer.BadParameter(f"--plot {plot} must be a .png file in a folder that is there")
    from console.replay_report import as_json, print_report

    settings = settings_of(config, servers)
    done = replay(settings, model, since, until)
    if json:
        as_json(done)
    else:
        print_report(done)
    if plot is not None:
        from console.replay_plot import draw

        draw(done, plot)
