"""`ecluse label`: what a person says was right about one event."""

import asyncio
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, settings_of
from console.reading import clock_time, moment, printable
from ecluse.errors import DataError

if TYPE_CHECKING:
    from ecluse.contract.records import Label
    from ecluse.settings import Settings

_PEOPLE = "analyst"

KnownAtOption = Annotated[
    float | None,
    typer.Option(
        "--known-at",
        parser=moment,
        metavar="TIME",
        help="When it became known (2026-03-01T12:00:00Z, or 2h: so long ago); now where not given.",
        show_default=False,
    ),
]


def label_command(
    event_id: Annotated[str, typer.Argument(help="The event's id, as `ecluse alerts` shows it.", show_default=False)],
    value: Annotated[
        str,
        typer.Argument(
            help="1, positive or fraud; 0, negative or legit; none takes the origin's label back.", show_default=False
        ),
    ],
    *,
    origin: Annotated[
        str, typer.Option(help=f"One of labels.origins; {_PEOPLE}, or the only one, where not given.")
    ] = "",
    because_of_alert: Annotated[
        bool, typer.Option("--because-of-alert", help="The case was looked at because of an alert.")
    ] = False,
    confidence: Annotated[float, typer.Option(min=0, max=1, help="How sure you are, 0 to 1.")] = 1.0,
    labeler: Annotated[str, typer.Option(help="Who says so.")] = "",
    known_at: KnownAtOption = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Say what was right about an event: a label, which the broker has confirmed when this ends."""
    settings = settings_of(config, servers)
    origin = origin_of(settings, origin)
    if known_at is None and settings.stream.clock == "event":
        raise typer.BadParameter(
            'the stream runs on its events\' clock (stream.clock = "event"): say when it became known',
            param_hint="--known-at",
        )
    if not event_id:
        raise typer.BadParameter("it is empty", param_hint="EVENT_ID")
    from ingest.labels import make_label

    label = make_label(
        event_id=event_id,
        value=_meaning(settings, value),
        known_at=known_at,
        labeler=labeler,
        confidence=confidence,
        alerted=because_of_alert,
    )
    asyncio.run(_publish(settings, origin, label))
    topic = settings.names.labels(origin)
    if json:
        print_json({"topic": topic, "origin": origin, "label": label})
        return
    said = {1: "positive", 0: "negative", None: "taken back"}[label.value]
    known = "" if known_at is None else f", known at {clock_time(known_at)} UTC"
    out.print(f"{printable(event_id)}: {said} ({origin}{known}).", markup=False, soft_wrap=True)


def origin_of(settings: "Settings", asked: str) -> str:
    """The origin that a command writes as: the one that is asked for, else that of people, else the only one.

    Raises:
        typer.BadParameter: it is not configured, or none is named where there are several.
    """
    origins = settings.labels.origins
    if asked in origins:
        return asked
    there = f"labels.origins has {', '.join(origins)}"
    if asked:
        raise typer.BadParameter(f"there is no origin '{asked}': {there}", param_hint="--origin")
    if _PEOPLE not in origins and len(origins) > 1:
        raise typer.BadParameter(f"name the origin: {there}", param_hint="--origin")
    return _PEOPLE if _PEOPLE in origins else origins[0]


def _meaning(settings: "Settings", word: str) -> int | None:
    from ingest.labels import meaning

    try:
        return meaning(word, settings.model.positive)
    except DataError as error:
        raise typer.BadParameter(str(error), param_hint="VALUE") from error


async def _publish(settings: "Settings", origin: str, label: "Label") -> None:
    from ecluse.contract.codecs import encoder
    from ingest import Publisher
    from ingest.labels import HEADERS

    async with Publisher(settings, topic=settings.names.labels(origin)) as publisher:
        await publisher.publish_encoded([(label.event_id.encode(), encoder("json")(label))], HEADERS)
