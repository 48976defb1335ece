"""`ecluse dlq`: records that could not be scored, and why. Of what they hold, only what people may see is shown."""

import hashlib
import heapq
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import count
from typing import Annotated, Any

import msgspec
import typer
from confluent_kafka import Message

from console.dlq_replay import fetch, place_of, replay
from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, print_table, say, settings_of
from console.reading import SinceOption, clock_time, headers_of, printable, reader, records, spans
from ecluse.contract.codecs import looks_like_json
from ecluse.contract.headers import ERROR_PREFIX, read_attempts, read_envelope, read_error_headers
from ecluse.contract.schema import EventSchema
from ecluse.errors import EcluseError, Stage
from ecluse.settings import Settings

app = typer.Typer(help="Dead letters: records that could not be scored.", no_args_is_help=True)

#: What a message may have taken over from a payload: quoted text, and long numbers.
_QUOTED = re.compile(r"(?<!\w)'[^']+'|\"[^\"]+\"|\d{4,}")
_SHORTEST_MASKED = 3


@dataclass(frozen=True, slots=True)
class DeadLetter:
    """A dead letter as people may see it. `place` is its partition and offset in the dead-letters topic."""

    place: str
    when: float
    stage: str
    error: str
    message: str
    source: str
    #: How often it was replayed and came back; null where its header is no number.
    attempts: int | None


@app.command("list")
def list_command(
    *,
    stage: Annotated[Stage | None, typer.Option("--stage", help="Only those that failed at this stage.")] = None,
    limit: Annotated[int, typer.Option("--limit", min=0, help="Show the newest N.")] = 20,
    since: SinceOption = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """List the newest dead letters, and count all of them by stage."""
    settings = settings_of(config, servers)
    topic = settings.names.dead_letters
    stages: Counter[str] = Counter()
    newest: list[tuple[int, int, Message]] = []
    ties = count()
    with closing(reader(settings)) as consumer:
        for message in records(settings, consumer, topic, spans(settings, consumer, topic, since)):
            found = read_error_headers(headers_of(message)).get("stage", "")
            stages[found] += 1
            if stage is None or found == stage:
                heapq.heappush(newest, (message.timestamp()[1], next(ties), message))
                if len(newest) > limit:
                    heapq.heappop(newest)
    letters = [_letter(settings, message) for _, _, message in sorted(newest, key=lambda entry: entry[:2])]
    if json:
        print_json({"dead_letters": [asdict(letter) for letter in letters], "by_stage": dict(stages)})
        return
    if letters:
        prefix = settings.names.prefix
        columns = ("place", "when (UTC)", "stage", "message", "source")
        rows = [(x.place, clock_time(x.when), x.stage, x.message, x.source.removeprefix(prefix)) for x in letters]
        print_table(columns, rows)
        say("`ecluse dlq show PLACE` shows one.")
    counts = ", ".join(f"{printable(name) or 'no stage'} {number:,}" for name, number in stages.most_common())
    out.print(f"{stages.total():,} dead letters{': ' if counts else ''}{counts}", markup=False, soft_wrap=True)


@app.command()
def show(
    place: Annotated[str, typer.Argument(metavar="PARTITION-OFFSET", help="As `ecluse dlq list` gives it.")],
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Show a dead letter: its headers, and of its value the fields that people may see."""
    asked, settings = place_of(place), settings_of(config, servers)
    with closing(reader(settings)) as consumer:
        held = spans(settings, consumer, settings.names.dead_letters)
        (message,) = fetch(settings, consumer, held, [asked])
    shown = _shown(settings, message)
    if json:
        print_json(shown)
        return
    for name, value in (shown | {"when": f"{clock_time(shown['when'])} UTC"}).items():
        if isinstance(value, dict):
            out.print(f"{name}:")
            for inner, content in value.items():
                out.print(f"  {printable(inner)}: {printable(content, 400)}", markup=False, soft_wrap=True)
        else:
            out.print(f"{name}: {printable(value, 400)}", markup=False, soft_wrap=True)


app.command()(replay)


def _letter(settings: Settings, message: Message) -> DeadLetter:
    said = read_error_headers(headers_of(message))
    return DeadLetter(
        place=f"{message.partition()}-{message.offset()}",
        when=message.timestamp()[1] / 1e3,
        stage=printable(said.get("stage", "")),
        error=printable(said.get("exception.class.name", "")),
        message=_without_payload(said.get("exception.message", ""), settings, message),
        source=printable("-".join(said.get(part, "?") for part in ("topic", "partition", "offset")), 300),
        attempts=read_attempts(headers_of(message)),
    )


def _shown(settings: Settings, message: Message) -> dict[str, Any]:
    letter = _letter(settings, message)
    headers = {}
    for name, content in headers_of(message):
        text = _header_text(content)
        headers[name] = letter.message if name == f"{ERROR_PREFIX}exception.message" else text
    value = message.value() or b""
    event = _event(message)
    shown: dict[str, Any] = asdict(letter) | {
        "key": _header_text(message.key()),
        "headers": headers,
        "value_bytes": len(value),
        "value_sha256": hashlib.sha256(value).hexdigest(),
    }
    if event is None:
        return shown | {"note": "The value is no JSON or msgpack object, so nothing of it is shown."}
    fields = _visible(settings, event)
    hidden = sum(name not in fields for name in event)
    return shown | {"fields": fields, "note": f"{hidden} fields of the value are not among those that people may see."}


def _header_text(content: bytes | None) -> str | None:
    if content is None:
        return None
    try:
        return content.decode()
    except UnicodeDecodeError:
        return f"({len(content)} bytes)"


def _event(message: Message) -> dict[str, Any] | None:
    """The value as an object, if it is one."""
    try:
        envelope = read_envelope(headers_of(message), message.value())
        if not envelope.value:
            return None
        is_json = looks_like_json(envelope.value) if envelope.json is None else envelope.json
        decode = msgspec.json.decode if is_json else msgspec.msgpack.decode
        return decode(envelope.value, type=dict[str, Any])
    except (EcluseError, msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return None


def _visible(settings: Settings, event: Mapping[str, Any]) -> dict[str, Any]:
    """The fields that people may see. A value of another type than the declared one may be anything: it is described."""
    fields = {}
    for name in settings.stream.visible:
        if name not in event:
            continue
        value = event[name]
        declared = settings.stream.fields[name]
        try:
            EventSchema({name: declared}).from_msgpack(msgspec.msgpack.encode({name: value}))
            fields[name] = value
        except (msgspec.ValidationError, OverflowError):  # msgpack has no whole number of more than 64 bits
            kind = f"text of {len(value)} characters" if isinstance(value, str) else type(value).__name__
            fields[name] = f"({kind}, where {declared.type.value} was declared)"
    return fields


def _without_payload(text: str, settings: Settings, message: Message) -> str:
    """An error's message without what it may have taken over from the payload."""
    event = _event(message) or {}
    visible = _visible(settings, event)
    for value in _hidden_values({name: value for name, value in event.items() if visible.get(name, ...) != value}):
        text = text.replace(value, "…")
    payload = (message.value() or b"").decode(errors="replace")
    known = {*settings.stream.fields, *(str(value) for value in visible.values())}

    def mask(found: re.Match[str]) -> str:
        quoted = found[0].strip("'\"")
        return found[0] if quoted in known or quoted not in payload else found[0].replace(quoted, "…")

    return printable(_QUOTED.sub(mask, text), 400)


def _hidden_values(event: Mapping[str, Any]) -> Iterator[str]:
    """The values of an object as text, the longest first."""
    texts = (str(value) for value in event.values() if value is not None and not isinstance(value, bool))
    yield from sorted((text for text in texts if len(text) >= _SHORTEST_MASKED), key=len, reverse=True)
