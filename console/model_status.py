"""`ecluse model status`: asks every worker what it really runs.

Workers are found through their consumer group: each one's Kafka client id says who it is and on which port it answers, and the
broker says from which address it came.
"""

import ipaddress
import socket
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from http.client import HTTPConnection, HTTPException
from typing import TYPE_CHECKING

import msgspec
import typer
from confluent_kafka import KafkaError, KafkaException

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, print_table, say, settings_of
from console.reading import percent, printable
from ecluse import kafka
from ecluse.errors import BrokerUnreachable

if TYPE_CHECKING:
    from ecluse.settings import Settings

#: How long a worker may take to connect, and then to answer, in seconds.
_PATIENCE = 2.0
#: Workers that are asked at once.
_ASKED = 32
_LARGEST_ANSWER = 64 * 1024
_AWAY = (KafkaError._TIMED_OUT, KafkaError._TRANSPORT, KafkaError._ALL_BROKERS_DOWN)


class Answer(msgspec.Struct, frozen=True):
    """What a worker says of its model (``/model``). Times are in seconds, `progress` of a download goes from 0 to 1.

    `switch_revision` is the bypass switch's that it obeys, -1 for none; `bypass_share` of eligible events goes past.
    """

    worker: str
    version: int | None = None
    sha256: str | None = None
    revision: int | None = None
    since: float | None = None
    loading: int | None = None
    progress: float | None = None
    switch_revision: int | None = None
    bypass_share: float | None = None
    degraded: str = ""


@dataclass(frozen=True)
class Member:
    """A member of the workers' group. `port` is None where it is no worker of ours; `hosts` are where it may be."""

    worker: str
    port: int | None
    hosts: tuple[str, ...]
    partitions: tuple[int, ...]


@dataclass(frozen=True)
class Status:
    """A worker and what it runs. `state` is one of serves, behind, loading, degraded, unreachable; `why` tells more."""

    worker: str
    partitions: tuple[int, ...]
    state: str
    why: str
    answer: Answer | None


def status(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Show what the route names and what each worker runs. Exit code 1: a worker is degraded or cannot be asked."""
    from ecluse.model.registry import read_registry

    settings = settings_of(config, servers)
    # The route first: a worker that is ahead of what was read is no news, one that is behind is.
    routed = read_registry(settings).routes.get(settings.model_name)
    revision = None if routed is None else routed.revision
    found = members(settings)
    workers = sorted(
        (status_of(member, answer, revision) for member, answer in zip(found, ask_all(found), strict=True)),
        key=lambda each: each.worker,
    )
    ok = all(each.state not in ("degraded", "unreachable") for each in workers)
    version = None if routed is None else routed.route.champion.version
    if json:
        print_json(
            {"model": settings.model_name, "version": version, "revision": revision, "ok": ok, "workers": workers}
        )
    else:
        _print(settings, version, revision, workers)
    if not ok:
        raise typer.Exit(1)


def members(settings: "Settings") -> list[Member]:
    """Who is in the workers' group now.

    Raises:
        BrokerUnreachable: no broker answered in time.
        KafkaException: it does not tell.
    """
    client = kafka.admin(settings)
    topic = settings.names.events

    def describe() -> list[Member]:
        asked = client.describe_consumer_groups([settings.group], request_timeout=kafka.PATIENCE)
        described = asked[settings.group].result(kafka.PATIENCE + 1.0)
        return [
            member_of(
                each.client_id,
                each.host,
                (place.partition for place in each.assignment.topic_partitions if place.topic == topic),
            )
            for each in described.members
        ]

    try:
        return kafka.once_coordinated(describe)
    except TimeoutError as error:
        raise BrokerUnreachable(settings.kafka.bootstrap_servers, "it does not describe the group") from error
    except KafkaException as error:
        if error.args[0].code() in _AWAY:
            raise BrokerUnreachable(settings.kafka.bootstrap_servers, error.args[0].str()) from error
        raise


def member_of(client_id: str, address: str, partitions: Iterable[int]) -> Member:
    """A member as the broker describes it: ``ecluse/<host>-<pid>/<port>``, seen at an address such as ``/10.0.0.7``."""
    place = tuple(sorted(partitions))
    parts = client_id.split("/")
    if len(parts) != 3 or parts[0] != "ecluse" or not parts[2].isdecimal():
        return Member(client_id, None, (), place)
    seen = address.lstrip("/")
    here = _is_loopback(seen) or parts[1].rpartition("-")[0] == socket.gethostname()
    # A worker listens at 127.0.0.1 where metrics_host is not set, and only this machine can ask it there.
    hosts = dict.fromkeys([*(["127.0.0.1"] if here else []), seen])
    return Member(parts[1], int(parts[2]), tuple(hosts), place)


def ask_all(found: Sequence[Member]) -> list[Answer | None]:
    """What each of them says of itself, in their order."""
    with ThreadPoolExecutor(_ASKED) as askers:
        return list(askers.map(ask, found))


def ask(member: Member) -> Answer | None:
    """What a worker says of itself; None where none of that name answers."""
    return next((answer for host in member.hosts if (answer := _ask_at(host, member)) is not None), None)


def _ask_at(host: str, member: Member) -> Answer | None:
    from ecluse.model.manifest import UNREADABLE

    try:
        with closing(HTTPConnection(host, member.port, timeout=_PATIENCE)) as connection:
            connection.request("GET", "/model")
            response = connection.getresponse()
            if response.status != 200:
                return None
            answer = msgspec.json.decode(response.read(_LARGEST_ANSWER), type=Answer)
    except (OSError, HTTPException, *UNREADABLE):
        return None
    # Behind an address that several machines share, another may have answered.
    return answer if answer.worker == member.worker else None


def _is_loopback(address: str) -> bool:
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def status_of(member: Member, answer: Answer | None, revision: int | None) -> Status:
    """What to make of a worker's answer, where the route is of `revision`."""
    state, why = _state(member, answer, revision)
    return Status(member.worker, member.partitions, state, why, answer)


def _state(member: Member, answer: Answer | None, revision: int | None) -> tuple[str, str]:
    if answer is None:
        if member.port is None:
            return "unreachable", "its client id is none of a worker"
        return "unreachable", f"at {' and '.join(f'{host}:{member.port}' for host in member.hosts)}"
    loading = "" if answer.loading is None else f"version {answer.loading}, {answer.progress or 0.0:.0%} fetched"
    if answer.degraded:
        return "degraded", f"{answer.degraded}{f' Loading {loading}.' if loading else ''}"
    if loading:
        return "loading", loading
    if revision is not None and (answer.revision is None or answer.revision < revision):
        return "behind", f"the route is of revision {revision}"
    return "serves", ""


def _print(settings: "Settings", version: int | None, revision: int | None, workers: Sequence[Status]) -> None:
    name = settings.model_name
    routed = f"No version of model {name} is champion."
    if version is not None:
        routed = f"Version {version} of model {name} is champion, by revision {revision}."
    out.print(routed, markup=False, soft_wrap=True)
    if not workers:
        say(f"No worker is in the group {settings.group}.")
        return
    print_table(["worker", "version", "revision", "bypass", "state", "partitions"], [_row(each) for each in workers])


def _row(each: Status) -> list[object]:
    version, revision = (None, None) if each.answer is None else (each.answer.version, each.answer.revision)
    colon = ":" if each.state in ("degraded", "behind") else ""
    return [
        printable(each.worker),
        "?" if version is None else str(version),
        "?" if revision is None else str(revision),
        _bypass(each.answer),
        printable(f"{each.state}{colon} {each.why}".strip(), 500),
        ranges(each.partitions),
    ]


def _bypass(answer: Answer | None) -> str:
    """The share that goes past this worker's model, and by which revision of the switch."""
    if answer is None or answer.switch_revision is None:
        return "?"
    if not answer.bypass_share:
        return "off"
    return f"{percent(answer.bypass_share)}, by {answer.switch_revision}"


def ranges(numbers: Sequence[int]) -> str:
    """Rising numbers in few words: ``0-3, 7``."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(first) if first == last else f"{first}-{last}" for first, last in runs) or "none"
