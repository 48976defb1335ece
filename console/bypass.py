"""`ecluse bypass`: which share of events goes past the model, and what that costs."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, print_table, say, settings_of
from console.reading import clock_time, percent, printable
from ecluse.contract.records import Switch
from ecluse.errors import SettingsError, SwitchChanged

if TYPE_CHECKING:
    from console.bypass_costs import Day
    from console.model_status import Answer
    from ecluse.model.registry import Switched
    from ecluse.settings import Settings

app = typer.Typer(
    no_args_is_help=True, help="Let a share of events go past the model, so that its mistakes can be seen."
)

#: How often a change is tried again where only the budget's controller came between.
_TRIES = 5


def share_of(text: str) -> float:
    """A share, as ``2%`` or ``0.02``.

    Raises:
        typer.BadParameter: it is neither, or not within 0 and 1.
    """
    try:
        share = float(text[:-1]) / 100 if text.endswith("%") else float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise typer.BadParameter(f"'{text}' is no share: write it as 2% or 0.02.")
    return share


@app.command("set")
def set_share(
    share: Annotated[
        float,
        typer.Argument(
            parser=share_of, metavar="SHARE", help="Of the eligible events: 2% or 0.02.", show_default=False
        ),
    ],
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Let a share of the eligible events go past the model, from the next chunk on. The rules are those of the settings."""
    settings = settings_of(config, servers)
    wanted = switch_of(settings, share)
    _change(settings, lambda _: wanted, json)


@app.command()
def off(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Let nothing go past the model any more, from the next chunk on."""
    settings = settings_of(config, servers)

    def turned_off(before: Switch | None) -> Switch | None:
        return before and msgspec.structs.replace(before, share=0.0, wanted=0.0, created_at=time.time())

    _change(settings, turned_off, json)


def switch_of(settings: "Settings", share: float) -> Switch:
    """The switch that lets a share past, by the rules of the settings.

    Raises:
        SettingsError: the settings do not allow it.
    """
    from ecluse.contract.arms import Eligibility, secret_id
    from scoring.switch import require_secret

    bypass, secret = settings.bypass, require_secret(settings, share)
    if settings.stream.key_field is None:
        raise SettingsError(
            [
                "stream.key_field is not set: who goes past is drawn by entity, which is the record's key. Name the column "
                "that your events have as key; an event without one never goes past."
            ]
        )
    switch = Switch(
        name=settings.model_name,
        share=share,
        wanted=share,
        created_at=time.time(),
        secret_id=secret_id(secret),
        amount_field=bypass.amount_field,
        max_amount=bypass.max_amount,
        never={name: list(values) for name, values in bypass.never.items()},
        budget=bypass.budget,
    )
    Eligibility(switch, settings.stream.schema_of_events())
    return switch


def _change(settings: "Settings", wish: Callable[[Switch | None], Switch | None], json: bool) -> None:
    """Write what is wished for, and say so. Where a person came between, who has to look again is told."""
    from ecluse.model.registry import read_registry
    from ecluse.model.routes import set_switch

    seen = read_registry(settings).switches.get(settings.model_name)
    for left in reversed(range(_TRIES)):
        wanted = wish(seen.switch if seen else None)
        if wanted is None or (seen and _same(wanted, seen.switch)):
            return _tell(settings, seen, None, json)
        try:
            revision = set_switch(settings, wanted, seen.revision if seen else None)
        except SwitchChanged:
            now = read_registry(settings).switches.get(settings.model_name)
            if not (left and seen and now and _same_wish(seen.switch, now.switch)):
                raise
            seen = now  # the budget's controller alone was between
        else:
            return _tell(settings, seen, (wanted, revision), json)
    raise AssertionError("the last try returns or raises")


def _same(switch: Switch, other: Switch) -> bool:
    return msgspec.structs.replace(switch, created_at=other.created_at) == other


def _same_wish(switch: Switch, other: Switch) -> bool:
    """Whether they differ only in what the budget's controller sets."""
    return _same(msgspec.structs.replace(switch, share=other.share), other)


def _tell(settings: "Settings", before: "Switched | None", written: tuple[Switch, int] | None, json: bool) -> None:
    now = written or ((before.switch, before.revision) if before else None)
    if json:
        share, revision = (now[0].share, now[1]) if now else (0.0, None)
        was = before.switch.share if before else 0.0
        print_json(
            {"model": settings.model_name, "from": was, "to": share, "revision": revision, "changed": bool(written)}
        )
    elif now is None:
        _print(f"Nothing goes past model {settings.model_name}: there is no bypass switch.")
    else:
        _print(f"{_sentence(*now)}{'' if written else ' That was so already.'}")


def _sentence(switch: Switch, revision: int) -> str:
    name = switch.name
    if not switch.wanted:
        return f"Nothing goes past model {name}, by revision {revision}."
    lowered = "" if switch.share == switch.wanted else f" ({percent(switch.wanted)} are wanted; the budget allows less)"
    return f"{percent(switch.share)} of the eligible events go past model {name}, by revision {revision}{lowered}."


@app.command()
def status(
    days: Annotated[int, typer.Option("--days", min=1, help="Days (UTC) whose cost is shown, today included.")] = 7,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Show what goes past the model, since when, what it costs a day, and which workers take it up.

    Exit code 1: a worker does not obey the switch, or cannot be asked.
    """
    from console.bypass_costs import costs
    from console.model_status import ask_all, members
    from ecluse.model.registry import read_registry

    settings = settings_of(config, servers)
    switched = read_registry(settings).switches.get(settings.model_name)
    switch, revision = (switched.switch, switched.revision) if switched else (None, None)
    found = members(settings)
    workers = [
        obeys(member.worker, answer, revision)
        for member, answer in sorted(zip(found, ask_all(found), strict=True), key=lambda each: each[0].worker)
    ]
    ok = all(each.state in ("obeys", "behind") for each in workers)
    per_day = costs(settings, switch, days)
    if json:
        print_json(
            {
                "model": settings.model_name,
                "revision": revision,
                "switch": switch,
                "days": [asdict(day) for day in per_day],
                "ok": ok,
                "workers": workers,
            }
        )
    else:
        _print_status(settings, switched, per_day, workers)
    if not ok:
        raise typer.Exit(1)


class Obeying(msgspec.Struct, frozen=True):
    """A worker and the switch that it obeys. `state` is one of obeys, behind, degraded, unreachable; `why` tells more."""

    worker: str
    state: str
    why: str
    revision: int | None
    share: float | None


def obeys(worker: str, answer: "Answer | None", revision: int | None) -> Obeying:
    """What to make of a worker's answer, where the switch is of `revision` (None: there is none)."""
    if answer is None:
        return Obeying(worker, "unreachable", "", None, None)
    theirs = answer.switch_revision
    state, why = "obeys", ""
    if (-1 if revision is None else revision) > (-1 if theirs is None else theirs):
        state, why = ("degraded", answer.degraded) if answer.degraded else ("behind", "")
    return Obeying(worker, state, why, theirs, answer.bypass_share)


def _print_status(
    settings: "Settings", switched: "Switched | None", days: "Sequence[Day]", workers: Sequence[Obeying]
) -> None:
    if switched is None:
        _print(f"Nothing goes past model {settings.model_name}: there is no bypass switch.")
    else:
        switch = switched.switch
        _print(f"{_sentence(switch, switched.revision)} Set {clock_time(switch.created_at)} UTC.")
        for line in _rules(switch):
            _print(line)
    if days:
        told = len(_COLUMNS) if any(day.amount is not None for day in days) else 3
        print_table(_COLUMNS[:told], [_row(day)[:told] for day in days], title="What went past, by day (UTC)")
        if told == 3:
            say("What it was worth is told where bypass.amount_field names the field that says so.")
    else:
        _print("Nothing went past in these days.")
    if workers:
        print_table(["worker", "share", "revision", "state"], [_worker_row(each) for each in workers])
    else:
        say(f"No worker is in the group {settings.group}.")


_COLUMNS = ["day", "events", "entities", "amount", "median", "99%", "largest", "over budget"]


def _rules(switch: Switch) -> Iterator[str]:
    """Who is eligible, and what it may cost."""
    rules = [
        f"{printable(name)} is none of {', '.join(map(printable, values))}" for name, values in switch.never.items()
    ]
    if switch.amount_field is not None:
        limit = "" if switch.max_amount is None else f", {switch.max_amount:,.10g} at most"
        rules.insert(0, f"{printable(switch.amount_field)} is given{limit}")
    yield f"Eligible: events with a key{''.join(f'; {rule}' for rule in rules)}."
    if switch.budget is not None:
        yield f"Budget: {switch.budget:,.10g} of {printable(switch.amount_field)} a day (UTC)."


def _row(day: "Day") -> list[object]:
    amounts = (day.amount, day.median, day.p99, day.largest, day.over)
    return [
        day.day,
        day.events,
        day.entities,
        *("" if each is None else f"{each:,.2f}" for each in amounts),
    ]


def _worker_row(each: Obeying) -> list[object]:
    share = "?" if each.share is None else percent(each.share)
    revision = "?" if each.revision is None else "none" if each.revision < 0 else str(each.revision)
    return [
        printable(each.worker),
        share,
        revision,
        printable(f"{each.state}{': ' if each.why else ''}{each.why}", 500),
    ]


def _print(sentence: str) -> None:
    out.print(sentence, markup=False, soft_wrap=True)
