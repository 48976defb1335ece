"""`ecluse labels`: the labels of a file, and what the training store has of them."""

import asyncio
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.label import origin_of
from console.labels_coverage import coverage_command
from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, progress_bar, say, settings_of

if TYPE_CHECKING:
    from ingest import Publisher
    from ingest.labels import LabelFile

app = typer.Typer(help="Labels: what turned out to be right about the events.", no_args_is_help=True)

#: Labels that may wait for confirmation.
_UNCONFIRMED = 50_000


@app.command()
def publish(
    file: Annotated[Path, typer.Argument(help="A .csv, .jsonl, .ndjson or .parquet file.", show_default=False)],
    *,
    origin: Annotated[str, typer.Option(help="Whose labels they are: one of labels.origins.", show_default=False)],
    event_id: Annotated[
        str, typer.Option(help="The column of the events' ids; stream.id_field or event_id where not given.")
    ] = "",
    value: Annotated[
        str, typer.Option(help="The column of the truth; model.label or value where not given. Blank: no label.")
    ] = "",
    known_at: Annotated[
        str, typer.Option(help="The column of when each became known; known_at or label_known_at where not given.")
    ] = "",
    labeler: Annotated[str, typer.Option(help="The column of who says so.")] = "",
    confidence: Annotated[str, typer.Option(help="The column of how sure they are, 0 to 1.")] = "",
    alerted: Annotated[
        str, typer.Option(help="The column of whether the case was looked at because of an alert.")
    ] = "",
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Publish a file's rows as labels of one origin. All rows are checked first: of a file with a bad row nothing is sent."""
    settings = settings_of(config, servers)
    origin = origin_of(settings, origin)
    from ingest import Publisher
    from ingest.labels import LabelFile

    asked = {"event_id": event_id, "value": value, "known_at": known_at}
    asked |= {"labeler": labeler, "confidence": confidence, "alerted": alerted}
    with progress_bar("checking") as bar:
        columns = {role: name for role, name in asked.items() if name}
        labels = LabelFile(settings, file, columns, lambda done: bar(done, None))
    publisher = Publisher(settings, topic=settings.names.labels(origin), max_unconfirmed=_UNCONFIRMED)
    start = time.monotonic()
    try:
        asyncio.run(_publish(labels, publisher))
    except BaseException:
        open_ones = f"; {publisher.unconfirmed:,} more may have arrived, unconfirmed" if publisher.unconfirmed else ""
        say(f"Stopped: {publisher.confirmed:,} of {labels.total:,} labels are published{open_ones}.")
        raise
    _print_result(labels, publisher, time.monotonic() - start, as_json=json)


def _print_result(labels: "LabelFile", publisher: "Publisher", elapsed: float, *, as_json: bool) -> None:
    if as_json:
        print_json(
            {
                "published": publisher.confirmed,
                "left_out": labels.left_out,
                "seconds": round(elapsed, 3),
                "topic": publisher.topic,
                "columns": labels.columns,
            }
        )
        return
    say(f"Read {', '.join(f'{role} from {name!r}' for role, name in labels.columns.items())}.")
    blank = f" {labels.left_out:,} rows have no label." if labels.left_out else ""
    sentence = f"{publisher.confirmed:,} labels published to {publisher.topic} in {elapsed:.1f} s.{blank}"
    out.print(sentence, markup=False, soft_wrap=True)


async def _publish(labels: "LabelFile", publisher: "Publisher") -> None:
    with progress_bar("publishing") as bar:
        async with publisher:
            await labels.publish(publisher, lambda confirmed: bar(confirmed, labels.total))


app.command("coverage")(coverage_command)
