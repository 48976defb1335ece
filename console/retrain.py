"""`ecluse retrain`: asking for a new version of the model, and what became of those who asked."""

import statistics
import time
import uuid
from collections.abc import Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Annotated, cast

import msgspec
import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, print_table, say, settings_of
from console.reading import clock_time, moment, printable, reader, records, spans
from ecluse.contract.loop import Asker, RetrainRequest, Run

if TYPE_CHECKING:
    from confluent_kafka import Consumer, KafkaError, Message

    from ecluse.settings import Settings
    from ecluse.transport.ledger import Record

app = typer.Typer(help="Ask for a new version of the model; see what became of requests.", no_args_is_help=True)

#: How long the broker may take to confirm a request, in seconds.
_DELIVERY_SECONDS = 30.0
#: A partition's time is the median of its newest events: one whose clock is wrong tells nothing.
_NEWEST = 5


class Asked(msgspec.Struct, frozen=True):
    """A request and what became of it; `run` is None while no trainer has taken it, `request` where only its run is left."""

    id: str
    request: RetrainRequest | None
    run: Run | None

    @property
    def state(self) -> str:
        """In a word: open, training, published, failed or merged."""
        return "open" if self.run is None else self.run.state.value


@app.command("request")
def request_command(
    reason: Annotated[str, typer.Option(help="Why, for those who look at it later.")] = "a person asked",
    as_of: Annotated[
        float | None,
        typer.Option(
            parser=moment,
            metavar="TIME",
            help="What became known later is not trained on (2026-03-01T12:00:00Z, or 7d: so long ago); now where not given.",
            show_default=False,
        ),
    ] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Ask for a new version of the model. Prints the request's id; `ecluse retrain list` tells what becomes of it."""
    settings = settings_of(config, servers)
    if as_of is not None and settings.stream.clock == "arrival" and as_of > time.time():
        raise typer.BadParameter(f"{clock_time(as_of)} UTC lies in the future", param_hint="--as-of")
    made = ask(settings, reason, as_of)
    if json:
        print_json({"request": made})
        return
    out.print(made.id, markup=False, soft_wrap=True)
    say(f"A new version of {made.model} is asked for, as of {clock_time(made.cutoff)} UTC. `ecluse trainer` trains it.")


@app.command("list")
def list_command(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Show the requests, oldest first, and what became of each."""
    settings = settings_of(config, servers)
    found = requests(settings)
    if json:
        print_json(
            {
                "requests": [
                    {"id": each.id, "state": each.state, "request": each.request, "run": each.run} for each in found
                ]
            }
        )
        return
    if not found:
        say(f"Nobody has asked for a new version of {settings.model_name} yet.")
        return
    columns = ("request", "asked (UTC)", "as of (UTC)", "state", "version", "why")
    print_table(columns, [_row(each) for each in found])


def ask(settings: "Settings", reason: str, as_of: float | None = None) -> RetrainRequest:
    """Write a person's request; the broker has confirmed it when this returns.

    Raises:
        DeliveryError: it has not.
        TopicsWrong, BrokerUnreachable: the stream's topics are not there, or nobody answers.
        DataError: nobody can tell the stream's time: there is no event yet.
    """
    from ecluse import cluster, kafka
    from ecluse.contract.codecs import content_headers, encoder
    from ecluse.errors import DeliveryError, cause

    cluster.require_topics(settings)

    made = RetrainRequest(
        id=f"person-{uuid.uuid4().hex[:12]}",
        model=settings.model_name,
        asker=Asker.PERSON,
        reason=reason,
        cutoff=stream_now(settings) if as_of is None else as_of,
        created_at=time.time(),
    )
    topic, failures = settings.names.retrain_requests, []

    def told(error: "KafkaError | None", message: "Message") -> None:
        del message
        if error is not None:
            failures.append(cause(Exception(error.str())))

    producer = kafka.producer(settings)
    value = encoder(settings.stream.encoding)(made)
    headers = content_headers(settings.stream.encoding)
    producer.produce(topic, value, made.model.encode(), 0, told, headers=headers)
    if producer.flush(_DELIVERY_SECONDS) or failures:
        raise DeliveryError(topic, failures[0] if failures else "the broker does not answer")
    return made


def requests(settings: "Settings") -> list[Asked]:
    """The requests for the stream's model, oldest first; before them, runs of such as the topic does not hold any more.

    Raises:
        BrokerError: the topics cannot be read.
    """
    from ecluse.contract.codecs import Reader
    from ecluse.model.registry import read_registry

    model, topic, read = settings.model_name, settings.names.retrain_requests, Reader(RetrainRequest)
    found: dict[str, RetrainRequest] = {}
    with closing(reader(settings)) as consumer:
        for message in records(settings, consumer, topic, spans(settings, consumer, topic)):
            try:
                request = read(message.value() or b"")
            except msgspec.DecodeError:
                say(f"The record at {topic}-0-{message.offset()} is no request: left out.")
                continue
            if request.model == model:
                found.setdefault(request.id, request)
    runs = {run.request: run for (name, _), run in read_registry(settings).runs.items() if name == model}
    past = sorted((run for run in runs.values() if run.request not in found), key=lambda run: run.started_at)
    return [
        *(Asked(run.request, None, run) for run in past),
        *(Asked(id, request, runs.get(id)) for id, request in found.items()),
    ]


def stream_now(settings: "Settings") -> float:
    """How far the stream has come, on its clock: now, or on the events' clock what the monitor or the newest events say.

    Raises:
        DataError: there is no event yet.
    """
    if settings.stream.clock == "arrival":
        return time.time()
    from ecluse.errors import DataError
    from retrain.drift.state import read_state

    state = read_state(settings)
    if state is not None and state.stream_time is not None:
        return state.stream_time
    with closing(reader(settings)) as consumer:
        found = _newest_times(settings, consumer)
    if not found:
        raise DataError(
            "The stream runs on its events' clock, and there is no event yet: --as-of says as of when to train."
        )
    return statistics.median_high(found)  # one that is silent for weeks, or wrong, says little


def _newest_times(settings: "Settings", consumer: "Consumer") -> list[float]:
    """The time of each partition that holds events."""
    from ecluse.contract.records import Source
    from ecluse.errors import RecordError
    from ecluse.events import Decoder

    topic, decode = settings.names.events, Decoder(settings.stream, settings.stream.schema_of_events())
    held = spans(settings, consumer, topic)
    newest = {partition: (max(start, end - _NEWEST), end) for partition, (start, end) in held.items()}
    times: dict[int, list[float]] = {}
    for message in records(settings, consumer, topic, newest):
        partition, offset = message.partition() or 0, message.offset() or 0
        try:
            row = decode(cast("Record", message), Source(topic, partition, offset), [])
        except RecordError:
            continue
        times.setdefault(partition, []).append(row.time)
    return [statistics.median(found) for found in times.values()]


def _row(each: Asked) -> Sequence[object]:
    request, run = each.request, each.run
    version = "" if run is None or run.version is None else str(run.version)
    why = "" if request is None else request.reason
    if run is not None and (run.reason or run.into):
        why = run.reason or f"answered with {run.into}"
    asked, cutoff = ("?", "?") if request is None else (clock_time(request.created_at), clock_time(request.cutoff))
    return printable(each.id), asked, cutoff, each.state, version, printable(why, 200)
