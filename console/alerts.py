"""`ecluse alerts`: what people should look at, with why, a line an alert."""

from collections.abc import Iterable
from contextlib import closing

import msgspec
import typer
from confluent_kafka import Message
from rich.text import Text

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, say, settings_of
from console.reading import SinceOption, clock_time, follow, newest, printable, reader, spans
from ecluse.contract.codecs import Reader
from ecluse.contract.records import Alert, Decision, Reason, Severity

_SHOWN = 1_000
_SHOWN_BEFORE_FOLLOWING = 10
_TOP_REASONS = 3
SEVERITY_STYLES = {Severity.MEDIUM: "yellow", Severity.HIGH: "red", Severity.CRITICAL: "bold white on red"}


def alerts_command(
    *,
    following: bool = typer.Option(False, "--follow", "-f", help="Go on with what comes, until Ctrl-C."),
    limit: int | None = typer.Option(
        None,
        "--limit",
        min=0,
        help=f"The newest N of those that are there: {_SHOWN:,} where not given, {_SHOWN_BEFORE_FOLLOWING} with --follow.",
        show_default=False,
    ),
    since: SinceOption = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Show alerts: time (UTC), severity, decision, score, entity, event, reasons, and the fields that people may see.

    `ecluse label EVENT fraud --because-of-alert` (or legit) says what one turned out to be.
    """
    settings = settings_of(config, servers)
    topic = settings.names.alerts
    usual = _SHOWN_BEFORE_FOLLOWING if following else _SHOWN
    count = usual if limit is None else limit
    with closing(reader(settings)) as consumer:
        held = spans(settings, consumer, topic, since)
        found = newest(settings, consumer, topic, held, count) if count else []
        _show(found, json)
        there = sum(end - start for start, end in held.values())
        if len(found) == count and count < there and not following:
            say(f"These are the newest {count:,} of about {there:,} alerts; --limit shows more.")
        if following:
            say(f"Waiting for alerts on {topic}; Ctrl-C ends this.")
            try:
                _show(follow(consumer, topic, held), json)
            except KeyboardInterrupt:
                say("No longer waiting.")


def _show(messages: Iterable[Message], json: bool) -> None:
    decode = Reader(Alert)
    for message in messages:
        try:
            alert = decode(message.value() or b"")
        except msgspec.DecodeError:
            place = f"{message.topic()}-{message.partition()}-{message.offset()}"
            say(f"The record at {place} is no alert: left out.")
            continue
        if json:
            print_json(alert)
        else:
            out.print(line(alert), soft_wrap=True)


def line(alert: Alert) -> Text:
    """An alert in one line. Everything that a producer chose is made printable first."""
    text = Text(f"{clock_time(alert.event_time)}  ", style="")
    text.append(f"{alert.severity.value.upper():<8}", style=SEVERITY_STYLES[alert.severity])
    text.append(f"  {alert.decision.value:<6}", style="bold" if alert.decision is Decision.BLOCK else "")
    text.append(f"  {alert.score:.4f} ≥ {alert.threshold:.4f}  ")
    text.append(printable(alert.entity), style="bold cyan")
    text.append(f"  event {printable(alert.event_id)}  ")
    if alert.reasons == "skipped":
        text.append("reasons skipped: too many alerts at once", style="dim")
    else:
        text.append(", ".join(map(reason_text, alert.reasons[:_TOP_REASONS])))
    if alert.fields:
        shown = (f"{printable(name)}={_value(value)}" for name, value in alert.fields.items())
        text.append("  | " + " ".join(shown), style="dim")
    return text


def reason_text(reason: Reason) -> str:
    """A reason in words: the feature, its value, its usual value, and how much it moved the score."""
    if reason.value is None and reason.usual is None:  # as the worker writes a field that people may not see
        return f"{printable(reason.feature)} (not shown) {reason.effect:+.2f}"
    return f"{printable(reason.feature)} {_value(reason.value)} (usual {_value(reason.usual)}) {reason.effect:+.2f}"


def _value(value: object) -> str:
    """A value of an event; null where it has none."""
    if value is None:
        return "missing"
    return f"{value:.6g}" if isinstance(value, float) else printable(value)
