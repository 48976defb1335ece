"""`ecluse publish`: a file's rows as events."""

import asyncio
import datetime as dt
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn

from console.output import ConfigOption, JsonOption, ServersOption, err, out, print_json, say, settings_of

if TYPE_CHECKING:
    from ingest import Publisher, Replay

#: Events that may wait for confirmation: enough to keep a broker busy at full speed.
_UNCONFIRMED = 50_000


def publish(
    file: Annotated[Path, typer.Argument(help="A .csv, .jsonl, .ndjson or .parquet file.", show_default=False)],
    rate: Annotated[float | None, typer.Option(min=0.001, help="Events a second.", show_default=False)] = None,
    speed: Annotated[
        float | None,
        typer.Option(min=0.001, help="As many times faster than the events' own times say.", show_default=False),
    ] = None,
    since: Annotated[
        dt.datetime | None, typer.Option(help="The earliest event time (UTC), included.", show_default=False)
    ] = None,
    until: Annotated[
        dt.datetime | None, typer.Option(help="The end of event times (UTC), excluded.", show_default=False)
    ] = None,
    limit: Annotated[int | None, typer.Option(min=1, help="How many rows at most.", show_default=False)] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Publish a file's rows as events, in its order: the declared fields only, each confirmed by the broker."""
    if rate and speed:
        raise typer.BadParameter("choose --rate or --speed, not both")
    from ingest import Pace, Publisher, Replay

    settings = settings_of(config, servers)
    replay = Replay(settings, file, since=since, until=until, limit=limit, pace=Pace(rate, speed))
    publisher = Publisher(settings, max_unconfirmed=_UNCONFIRMED)
    start = time.monotonic()
    try:
        asyncio.run(_run(replay, publisher))
    except BaseException:
        open_ones = f"; {publisher.unconfirmed:,} more may have arrived, unconfirmed" if publisher.unconfirmed else ""
        say(f"Stopped: {publisher.confirmed:,} of {replay.total:,} events are published{open_ones}.")
        raise
    elapsed = time.monotonic() - start
    _print_result(publisher, elapsed, as_json)


async def _run(replay: "Replay", publisher: "Publisher") -> None:
    bar = Progress(
        SpinnerColumn(),
        TextColumn("publishing"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]:,.0f}/s"),
        TimeRemainingColumn(),
        console=err,
        transient=True,
        disable=not sys.stderr.isatty(),
    )
    with bar:
        task = bar.add_task("", total=replay.total, rate=0.0)

        def progress(confirmed: int) -> None:
            bar.update(task, completed=confirmed, rate=bar.tasks[0].speed or 0.0)

        async with publisher:
            await replay.run(publisher, progress)


def _print_result(publisher: "Publisher", elapsed: float, as_json: bool) -> None:
    rate = publisher.confirmed / elapsed
    if as_json:
        print_json(
            {
                "published": publisher.confirmed,
                "seconds": round(elapsed, 3),
                "events_per_second": round(rate, 1),
                "topic": publisher.topic,
            }
        )
    else:
        out.print(f"{publisher.confirmed:,} events published to {publisher.topic} in {elapsed:.1f} s ({rate:,.0f}/s).")
