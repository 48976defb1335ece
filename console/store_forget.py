"""`ecluse store forget`: what the training store knows of an entity is deleted, and stays so."""

from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, progress_bar, say, settings_of

if TYPE_CHECKING:
    from ingest.forget import Found, Topic, TrainingSet

_UNKNOWN = "The store has nothing of this entity."


def _utf8(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise typer.BadParameter("its bytes are not UTF-8; such a key's entity is its base64url form") from error
    return text


def forget(
    key: Annotated[
        str,
        typer.Option("--key", parser=_utf8, metavar="K", help="The entity, as its producers give it: card, customer."),
    ],
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask first.")] = False,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Delete an entity's rows in all tables of the training store, and say what is out of its reach.

    What comes of its events up to now is dropped from now on, too; events that come later are a new beginning.

    It can be stopped and done again at any time.
    """
    from ecluse import cluster
    from ecluse.store.delta import TrainingStore
    from ingest.forget import Entity, topics_out_of_reach, training_sets

    settings = settings_of(config, servers)
    entity = Entity(settings, TrainingStore(settings), key)
    ends, topics = cluster.end_offsets(settings, settings.names.events), topics_out_of_reach(settings)
    found = entity.find()
    if not yes:
        _ask(found)
    sets = training_sets(settings, found)
    with progress_bar("Forgetting") as progress:
        deleted = entity.forget(ends, progress)
    if as_json:
        print_json(
            {
                "known": any(deleted.rows.values()),
                "deleted": deleted.rows,
                "events": {"count": len(deleted.event_ids), "first": deleted.first, "last": deleted.last},
                "out_of_reach": {"topics": topics, "training_sets": sets},
            }
        )
        return
    _print(deleted, topics, sets)


def _ask(found: "Found") -> None:
    say(f"The store has {_counts(found)} of this entity{_when(found)}." if found.event_ids else _UNKNOWN)
    if not typer.confirm("Forget it for good?", err=True):
        raise typer.Exit(1)


def _counts(found: "Found") -> str:
    counts = {table: count for table, count in found.rows.items() if count}
    return f"{sum(counts.values()):,} rows ({', '.join(f'{count:,} in {table}' for table, count in counts.items())})"


def _when(found: "Found") -> str:
    return f", of events from {found.first:%Y-%m-%d %H:%M} to {found.last:%Y-%m-%d %H:%M} UTC" if found.first else ""


def _print(deleted: "Found", topics: "list[Topic]", sets: "list[TrainingSet]") -> None:
    if any(deleted.rows.values()):
        _line(f"Deleted {_counts(deleted)}{_when(deleted)}.")
    else:
        _line(_UNKNOWN)
    _line("What comes of its events up to now is dropped from now on: late labels, and records that are read again.")
    _line("Out of reach:")
    for topic in topics:
        until = f"deleted by about {topic.until:%Y-%m-%d %H:%M} UTC" if topic.until else "kept for ever"
        _line(f"  {topic.name}: what it holds of the entity is {until}")
    for found in sets:
        since = f"{found.since:%Y-%m-%d %H:%M}" if found.since else "the first event"
        _line(
            f"  the training set {found.sha256[:16]}…, of events from {since}, as of {found.as_of:%Y-%m-%d %H:%M} UTC"
        )


def _line(text: str) -> None:
    out.print(text, markup=False, soft_wrap=True)
