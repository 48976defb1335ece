"""`ecluse drift`: what the monitor says of the model that scores."""

import time
from collections.abc import Sequence
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import msgspec
import typer
from rich.text import Text

from console.drift_words import subject
from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, print_table, say, settings_of
from console.reading import SinceOption, clock_time, newest, printable, reader, records, spans
from console.retrain import Asked, requests
from ecluse.contract.loop import DriftReport, Level, Statistic

if TYPE_CHECKING:
    from collections.abc import Iterable

    from confluent_kafka import Message

    from ecluse.settings import Settings
    from retrain.drift.state import MonitorState

app = typer.Typer(help="What the monitor says of the model that scores.", no_args_is_help=True)

#: How many numbers `status` shows that are well; those that are not are always shown.
_SHOWN_CALM = 5
#: So many requests that are open, or of this episode, are shown, the newest.
_SHOWN_ASKED = 5
#: The newest report is looked for among so many offsets first, then among all.
_REACH = 500
#: With profiles that wait, a monitor that has written nothing for so long is told to be away, in seconds.
_SILENT_SECONDS = 900.0
_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.ALARM: "bold red"}


@app.command("status")
def status_command(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Show the newest report: how the model is, which numbers say so, and what became of the request that it made."""
    from retrain.drift.state import read_state

    settings = settings_of(config, servers)
    report = newest_report(settings)
    asked = [each for each in requests(settings) if _concerns(each, report)]
    state = read_state(settings)
    if json:
        print_json(
            {
                "report": report,
                "requests": [
                    {"id": each.id, "state": each.state, "request": each.request, "run": each.run} for each in asked
                ],
                "stream_time": state and state.stream_time,
                "written_at": state and state.written_at,
            }
        )
        return
    if report is None:
        _say_that_there_is_none(settings, state)
    else:
        _print(report)
    for each in asked[-_SHOWN_ASKED:]:
        out.print(_told(each), markup=False, soft_wrap=True)
    if report is not None:
        _print_numbers(report)
    _say_if_nobody_watches(settings, state)


@app.command("history")
def history_command(
    since: SinceOption = None,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.png", help="Draw the reports.", show_default=False)
    ] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Show the reports, oldest first; --since is held against the end of what they judge, on the stream's clock."""
    if plot is not None and (plot.suffix.lower() != ".png" or not plot.absolute().parent.is_dir()):
        raise typer.BadParameter(f"{plot} must be a .png file in a folder that is there", param_hint="--plot")
    settings = settings_of(config, servers)
    held = reports(settings)
    found = [report for report in held if since is None or report.until >= since]
    if json:
        print_json({"reports": found})
    elif found:
        columns = ("window's end (UTC)", "version", "events", "level", "worst", "episode", "request")
        print_table(columns, [_line(report) for report in found])
    elif held and since is not None:
        newest_end = clock_time(held[-1].until)
        say(f"There is no report since {clock_time(since)} UTC: the newest is on what came before {newest_end} UTC.")
    else:
        say(f"There is no report on {settings.model_name} yet.")
    if plot is not None and found:
        from console.drift_plot import draw

        asked = [each.request for each in requests(settings) if each.request is not None]
        draw(settings.model_name, found, asked, plot)
        say(f"Drawn to {plot}.")
    elif plot is not None:
        say(f"There is nothing to draw: {plot} is not written.")


def newest_report(settings: "Settings") -> DriftReport | None:
    """The report on the newest window; of the newest version, where several scored in it."""
    topic = settings.names.drift
    with closing(reader(settings)) as consumer:
        held = spans(settings, consumer, topic)
        found = _decoded(settings, newest(settings, consumer, topic, held, _REACH))
    return max(found or reports(settings), key=_order, default=None)


def reports(settings: "Settings") -> list[DriftReport]:
    """All reports on the stream's model, by window and version.

    Raises:
        BrokerError: the topic cannot be read.
    """
    topic = settings.names.drift
    with closing(reader(settings)) as consumer:
        found = _decoded(settings, records(settings, consumer, topic, spans(settings, consumer, topic)))
    return sorted(found, key=_order)


def _decoded(settings: "Settings", messages: "Iterable[Message]") -> list[DriftReport]:
    """The reports among the records, each once."""
    from ecluse.contract.codecs import Reader

    read, prefix = Reader(DriftReport), f"report/{settings.model_name}/".encode()
    found: dict[str, DriftReport] = {}
    for message in messages:
        value = message.value()
        if value is None or not (message.key() or b"").startswith(prefix):
            continue
        try:
            report = read(value)
        except msgspec.DecodeError:
            say(f"The record at {message.topic()}-0-{message.offset()} is no report: left out.")
            continue
        found[report.key] = report
    return list(found.values())


def _order(report: DriftReport) -> tuple[float, int]:
    return report.until, report.version


def _concerns(asked: Asked, report: DriftReport | None) -> bool:
    """Whether a request is not done with, or made in the episode that is open."""
    if asked.state in ("open", "training"):
        return True
    request = asked.request
    if report is None or report.episode is None or request is None or request.until is None:
        return False
    opened = float(report.episode.rpartition("-")[2])  # the end of the window that opened it
    return request.version == report.version and request.until >= opened


def _print(report: DriftReport) -> None:
    span = f"{clock_time(report.since)} to {clock_time(report.until)} UTC"
    line = Text(f"Version {report.version} of {report.model}, {span}, {report.events:,} events: ")
    out.print(line.append(report.level.value.upper(), style=_STYLES[report.level]), soft_wrap=True)
    episode = "No episode is open." if report.episode is None else f"Episode {report.episode} is open."
    out.print(episode, markup=False, soft_wrap=True)
    if report.matured_until is not None and report.matured_since is not None:
        matured = f"{clock_time(report.matured_since)} to {clock_time(report.matured_until)} UTC"
        out.print(
            f"Outcomes are of the events of {matured}, which had time to become known.", markup=False, soft_wrap=True
        )


def _print_numbers(report: DriftReport) -> None:
    shown, calm = _worst(report.statistics)
    if shown:
        out.print()
        columns = ("number", "of", "value", "95%", "warn", "alarm", "level")
        print_table(columns, [_row(each) for each in shown])
    if calm:
        say(f"{calm} more numbers are well; --json has them all.")
    left = {
        "late": report.late,
        "too far ahead": report.ahead,
        "in counts that fit no manifest or window": report.refused,
    }
    left["in no profile"] = report.uncounted
    if any(left.values()):
        told = ", ".join(f"{count:,} {what}" for what, count in left.items() if count)
        say(f"Not judged since the report before: {told} (docs/monitoring.md says what that means).")


def _worst(numbers: Sequence[Statistic]) -> tuple[Sequence[Statistic], int]:
    """Those to show, the worst first, and how many are left out."""
    troubled = sum(each.level is not Level.OK for each in numbers)
    shown = numbers[: troubled + _SHOWN_CALM]
    return shown, len(numbers) - len(shown)


def _row(each: Statistic) -> Sequence[object]:
    between = "" if each.low is None or each.high is None else f"{_number(each.low)} to {_number(each.high)}"
    value, warn, alarm = _number(each.value), _number(each.warn), _number(each.alarm)
    return each.name, printable(subject(each.name, each.input)), value, between, warn, alarm, each.level.value


def _number(value: float | None) -> str:
    return "" if value is None else f"{value:.4g}"


def _told(asked: Asked) -> str:
    """What became of a request, in a sentence."""
    run = asked.run
    what = f"The request {printable(asked.id)}"
    if run is None:
        return f"{what} waits for `ecluse trainer`."
    if asked.state == "training":
        return f"{what} is being trained on {printable(run.trainer)} since {clock_time(run.started_at)} UTC."
    if asked.state == "published":
        return f"{what} led to version {run.version}: `ecluse model show {run.version}`."
    if asked.state == "merged":
        return f"{what} was answered together with {printable(run.into or '?')}."
    return f"{what} led to no model: {printable(run.reason, 300)}"


def _line(report: DriftReport) -> Sequence[object]:
    worst = report.statistics[0] if report.statistics and report.statistics[0].level is not Level.OK else None
    named = ""
    if worst is not None:
        of = subject(worst.name, worst.input)
        named = f"{worst.name}{f' of {printable(of, 40)}' if of else ''} {_number(worst.value)}"
    episode, request = printable(report.episode or ""), printable(report.request or "")
    until = clock_time(report.until)
    return until, str(report.version), report.events, report.level.value, named, episode, request


def _say_that_there_is_none(settings: "Settings", state: "MonitorState | None") -> None:
    if state is None or state.stream_time is None:
        say(f"There is no report on {settings.model_name} yet: `ecluse monitor` makes one whenever a window closes.")
        return
    late = settings.monitor.late_hours
    say(
        f"No window has closed yet. The stream has come to {clock_time(state.stream_time)} UTC; a window of "
        f"{settings.monitor.window_hours:g} h closes {late:g} h of the stream's time after its end."
    )


def _say_if_nobody_watches(settings: "Settings", state: "MonitorState | None") -> None:
    """Profiles wait, and no monitor has written for long: nobody reads them."""
    from retrain.drift.state import unread

    silent = None if state is None else time.time() - state.written_at
    if (silent is None or silent > _SILENT_SECONDS) and unread(settings):
        since = "has ever" if silent is None else f"has for {silent / 60:,.0f} min"
        say(f"Workers' profiles wait, and no monitor {since} written where it stands: is `ecluse monitor` running?")
