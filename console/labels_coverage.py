"""`ecluse labels coverage`: of the events of each day, how many have a label, how late it came, how many can still come."""

import datetime as dt
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, out, print_json, print_table, say, settings_of
from console.reading import moment

if TYPE_CHECKING:
    from ingest.coverage import Cohort, Coverage, Delays, Group

_DAYS = 60
_UNITS = (("d", 86_400), ("h", 3_600), ("min", 60))
#: Columns that are shown though they hold nothing.
_ALWAYS = ("events", "with label", "positive", "open", "still to come")


def coverage_command(
    *,
    days: Annotated[int, typer.Option(min=1, max=36_500, help="How many days, the last included.")] = _DAYS,
    as_of: Annotated[
        float | None,
        typer.Option(
            "--as-of",
            parser=moment,
            metavar="TIME",
            help="As it was known then (2026-03-01T12:00:00Z, or 7d: so long ago); now where not given.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    json: JsonOption = False,
) -> None:
    """Show, by day of the events, how many have a label, how late labels came, and how many can still come."""
    from ecluse.store.delta import TrainingStore
    from ingest.coverage import coverage

    settings = settings_of(config)
    if as_of is not None and as_of > time.time() and settings.stream.clock == "arrival":
        raise typer.BadParameter("it is still to come: nobody knows what will be known then", param_hint="--as-of")
    when = None if as_of is None else dt.datetime.fromtimestamp(as_of, dt.UTC)
    found = coverage(settings, TrainingStore(settings), days=days, as_of=when)
    if json:
        print_json(found)
    elif found.cohorts:
        _print(found)
    if not found.cohorts:
        say(
            f"The store at {settings.store.url} holds no prediction of these days, which are those of the events' own "
            "time: --days reaches further back, and `ecluse store` writes what is not there yet."
        )


def _print(found: "Coverage") -> None:
    origins = list(dict.fromkeys(origin for cohort in found.cohorts for origin in cohort.origins))
    _print_shown([_row(cohort, origins) for cohort in found.cohorts], title="Events that were let through, by day")
    out.print()
    kinds = {
        "let through": [cohort.let_through for cohort in found.cohorts],
        "of those, bypassed": [cohort.bypassed for cohort in found.cohorts],
        "blocked": [cohort.blocked for cohort in found.cohorts],
    }
    _print_shown([{"kind": kind} | _total(groups) for kind, groups in kinds.items()], title="All days, by kind")
    if found.origins:
        out.print()
        print_table(
            ("origin", "labels", "median", "90% within", "99% within", "late"),
            [_delays_row(origin, delays) for origin, delays in found.origins.items()],
            title="How late the labels of mature events came",
        )
    say(_summary(found))


def _print_shown(rows: list[dict[str, object]], title: str) -> None:
    """A table without the columns that hold nothing."""
    shown = [name for name in rows[0] if name in _ALWAYS or any(row[name] for row in rows)]
    print_table(shown, [[row[name] for name in shown] for row in rows], title=title)


def _row(cohort: "Cohort", origins: Sequence[str]) -> dict[str, object]:
    """A cohort's line by column; the labels of an origin are those of blocked events too."""
    by_origin = {origin: cohort.origins[origin].labels if origin in cohort.origins else 0 for origin in origins}
    return {"day-in-UTC": cohort.day.isoformat()} | _total([cohort.let_through]) | by_origin


def _total(groups: Sequence["Group"]) -> dict[str, object]:
    expected = [group.expected for group in groups if group.expected is not None]
    return {
        "events": sum(group.events for group in groups),
        "with label": sum(group.labelled for group in groups),
        "positive": sum(group.positives for group in groups),
        "silent": sum(group.silent for group in groups),
        "unknown": sum(group.unknown for group in groups),
        "open": sum(group.open for group in groups),
        "still to come": round(sum(expected)) if expected else "?",
    }


def _delays_row(origin: str, delays: "Delays") -> tuple[object, ...]:
    within = [_duration(seconds) for seconds in (delays.median, delays.p90, delays.p99)]
    return (origin, delays.labels, *within, delays.late)


def _duration(seconds: float) -> str:
    unit, size = next(((unit, size) for unit, size in _UNITS if abs(seconds) >= size), ("s", 1))
    return f"{seconds / size:.1f} {unit}"


def _summary(found: "Coverage") -> str:
    mature = f"{found.maturity_hours / 24:g} days" if found.maturity_hours >= 48 else f"{found.maturity_hours:g} hours"
    as_of = "" if found.as_of is None else f"As of {found.as_of:%Y-%m-%d %H:%M:%S} UTC; "
    ahead = f" {found.ahead:,} events lie in the future by their own time and are in no line." if found.ahead else ""
    return f"{as_of}an event is mature after {mature}, and silence then means {found.silence}.{ahead}"
