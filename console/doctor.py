"""`ecluse doctor`: from the configuration to the model, is all as it must be, and what to do where it is not."""

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from pathlib import Path

import typer
from confluent_kafka import KafkaException

from console.model_status import ask_all, members
from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, settings_of
from console.reading import Span, printable, reader, spans
from ecluse import cluster, kafka
from ecluse.errors import EcluseError, ModelError, SettingsError
from ecluse.settings import Settings


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that was looked at: whether it is well, what was seen, and what to do where it is not."""

    name: str
    ok: bool
    seen: str
    advice: str = ""


def doctor_command(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Check configuration, broker, topics, the workers' group and the model. Exit code 1: something is wrong."""
    checks = []
    for check in examine(config, servers):
        checks.append(check)
        if not json:
            _print(check)
    faults = sum(not check.ok for check in checks)
    if json:
        print_json({"ok": not faults, "checks": [asdict(check) for check in checks]})
    else:
        out.print(f"\n{faults} of {len(checks)} checks found a fault." if faults else "\nNothing is wrong.")
    if faults:
        raise typer.Exit(1)


def _print(check: Check) -> None:
    out.print("[green]ok   [/]" if check.ok else "[bold red]fault[/]", end=" ")
    out.print(f"{check.name}: {check.seen}", markup=False, soft_wrap=True)
    if check.advice:
        out.print(f"      → {check.advice}", markup=False, soft_wrap=True)


def examine(config: Path | None, servers: str | None) -> Iterator[Check]:
    """The checks, in an order in which each needs those before it; ends where the next would make no sense."""
    try:
        settings = settings_of(config, servers)
    except SettingsError as error:
        yield Check("configuration", False, " ".join(error.problems), "Correct the file or the environment.")
        return
    yield Check("configuration", True, f"stream {settings.stream.name}, {len(settings.stream.fields)} fields")
    broker = _guarded("broker", lambda: _broker(settings))
    yield broker
    if not broker.ok:
        return
    topics = _guarded("topics", lambda: _topics(settings))
    yield topics
    if settings.names.events in kafka.partition_counts(settings):
        yield _guarded("offsets", lambda: _offsets(settings))
        yield _guarded("workers", lambda: _workers(settings))
    if settings.names.models in kafka.partition_counts(settings):
        yield _guarded("model", lambda: _model(settings))


def _guarded(name: str, check: Callable[[], Check]) -> Check:
    """A check whose failure is a fault, not the end of the examination."""
    try:
        return check()
    except EcluseError as error:
        return Check(name, False, str(error))
    except KafkaException as error:
        return Check(name, False, f"Kafka refused: {error.args[0].str()}")


def _broker(settings: Settings) -> Check:
    counts = kafka.partition_counts(settings)
    return Check("broker", True, f"answers at {settings.kafka.bootstrap_servers}, {len(counts)} topics")


def _topics(settings: Settings) -> Check:
    problems = cluster.check_topics(settings)
    if problems:
        return Check("topics", False, " ".join(problems), "`ecluse topics create` makes missing ones.")
    names = settings.names
    return Check(
        "topics", True, f"{len(settings.topic_specs)} topics {names.prefix}*, {settings.topics.partitions} partitions"
    )


def _offsets(settings: Settings) -> Check:
    """Whether the group knows where it stands in every partition, and its next event is still held."""
    committed, held = cluster.committed_offsets(settings), _held(settings)
    unset = [partition for partition, offset in committed.items() if offset is None]
    if unset:
        return Check(
            "offsets",
            False,
            f"the group {settings.group} has no offset in {len(unset)} of {len(committed)} partitions.",
            "`ecluse topics create` starts it at the first events held.",
        )
    lost = {p: held[p][0] - offset for p, offset in committed.items() if offset is not None and offset < held[p][0]}
    if lost:
        return Check(
            "offsets",
            False,
            f"{sum(lost.values()):,} events in {len(lost)} partitions were deleted before they were scored.",
            "Keep events for longer (topics.retention_hours) or score faster; workers refuse to start until the group's "
            f"offsets are set again: kafka-consumer-groups --group {settings.group} --reset-offsets --to-earliest.",
        )
    ahead = [p for p, offset in committed.items() if offset is not None and offset > held[p][1]]
    if ahead:
        return Check(
            "offsets",
            False,
            f"the group's offset lies beyond the end of partitions {', '.join(map(str, ahead))}: the topic was made anew.",
            f"Delete the group's offsets (kafka-consumer-groups --group {settings.group} --delete-offsets), "
            "then `ecluse topics create`.",
        )
    return Check("offsets", True, f"the group {settings.group} has its place in {len(committed)} partitions")


def _workers(settings: Settings) -> Check:
    """Whether somebody scores what waits, and all that can be asked from here by the model that is routed."""
    committed, held = cluster.committed_offsets(settings), _held(settings)
    lags = {p: max(0, high - max(low, committed.get(p) or 0)) for p, (low, high) in held.items()}
    lag, worst = sum(lags.values()), max(lags, key=lambda partition: lags[partition])
    found = members(settings)
    seen = f"{len(found)} workers, {lag:,} events wait"
    if lag:
        seen += f" (most in partition {worst}: {lags[worst]:,})"
    # One that does not answer may listen on another machine's 127.0.0.1: no fault.
    if degraded := [answer for answer in ask_all(found) if answer is not None and answer.degraded]:
        first = f"{degraded[0].worker}: {degraded[0].degraded}"
        return Check(
            "workers",
            False,
            f"{seen}; {len(degraded)} degraded, such as {printable(first, 500)}",
            "`ecluse model status` tells more of each; `ecluse model rollback` goes back to the champion before.",
        )
    if found:
        return Check("workers", True, seen)
    return Check("workers", not lag, seen, "`ecluse worker` starts one.")


def _model(settings: Settings) -> Check:
    """Whether the routed champion loads, as a worker would load it, and gives probabilities."""
    from ecluse.model.artefact import load_model
    from ecluse.model.registry import read_registry

    name = settings.model_name
    registry = read_registry(settings)
    routed = registry.routes.get(name)
    if routed is None:
        return Check(
            "model", False, f"no version of {name} is routed: workers wait.", "`ecluse model train FILE` makes one."
        )
    version = routed.route.champion.version
    release = registry.releases.get((name, version))
    if release is None:
        seen = f"{name} version {version} is routed but not released."
        return Check("model", False, seen, _advice_on_model(settings, version, ""))
    try:
        load_model(settings, version, release)
    except SettingsError as error:
        return Check("model", False, str(error), "Correct the section [model] of the configuration (docs/models.md).")
    except ModelError as error:
        return Check("model", False, str(error), _advice_on_model(settings, version, error.step))
    return Check("model", True, f"{name} version {version} (route revision {routed.revision}) loads and scores")


def _advice_on_model(settings: Settings, version: int, step: str) -> str:
    """What to do about a champion that failed at a step on its way into service."""
    if step == "fetch":
        return f"Give workers the store that holds it (model.store is {settings.model.store}), or train a new version."
    if step == "verify":
        return (
            f"`ecluse model verify {version}` looks into the store; `ecluse model sign {version}` signs it anew where its "
            "files are those of its release (docs/models.md)."
        )
    return "Promote another version (`ecluse model list`, `ecluse model promote`), or train a new one."


def _held(settings: Settings) -> dict[int, Span]:
    with closing(reader(settings)) as consumer:
        return spans(settings, consumer, settings.names.events)
