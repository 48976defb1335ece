"""Which cases run, with which seeds, on which broker; and the table of what became of them.

`--chaos some` (as in `make test`) runs three cases with little load; `all` and `third` are for `make chaos`.
"""

import datetime as dt
import uuid
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from console.bypass import switch_of
from ecluse import cluster
from ecluse.contract.records import Arm, Release
from ecluse.model.artefact import verified
from ecluse.model.registry import read_registry
from ecluse.model.routes import announce, set_switch
from ecluse.secrets import make_secret
from ecluse.settings import Settings
from tests.chaos.brokers import LATE_ABORTS, SHORT_CONSUMER_SESSION, Broker
from tests.chaos.case import Case, Result
from tests.chaos.proxy import Proxy
from tests.conftest import FIELDS
from tests.workers import train_champion

#: Events of a case at least: 22 cases make more than a million.
EVENTS, FEW_EVENTS = 50_000, 10_000
MODEL = "chaos"
#: Brokers of a case's own.
OWN_SETTINGS: dict[str, dict[str, str]] = {
    "killed": {},
    "late_aborts": LATE_ABORTS,
    "proxied": {},
}
RESULTS = pytest.StashKey[list[Result]]()
SEED = pytest.StashKey[str]()


@dataclass(frozen=True)
class Variant:
    """One run of a case: `exactly_once`, `at_least_once`, or `kip848`; rounds differ in their seeds."""

    kind: str
    round: int

    def __str__(self) -> str:
        return self.kind if self.round == 1 else f"{self.kind}-{self.round}"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("chaos")
    group.addoption("--chaos", choices=["some", "third", "all"], default="some", help="which cases run")
    group.addoption("--third", choices=["1", "2", "3", "auto"], default="auto", help="which; auto: by the date")
    group.addoption("--rounds", type=int, default=1, help="how often each case runs, each time from another seed")
    group.addoption("--seed", default="", help="repeats a run; a new one where not given")


def pytest_configure(config: pytest.Config) -> None:
    lines = (
        "chaos(seconds, also, some, broker, worker, autoscale, bypass): a case, about how long it takes, how else it runs, on "
        "what, and which share of its events goes past the model",
        "whole_suite: holds of the whole suite only",
    )
    for line in lines:
        config.addinivalue_line("markers", line)
    config.stash[RESULTS] = []
    config.stash[SEED] = str(config.getoption("seed", "")) or uuid.uuid4().hex[:8]


def pytest_report_header(config: pytest.Config) -> str:
    return f"chaos: {_chosen(config)}, seed {config.stash[SEED]}"


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if mark := metafunc.definition.get_closest_marker("chaos"):
        kinds = ["exactly_once", *mark.kwargs.get("also", ())]
        rounds = range(1, int(metafunc.config.getoption("rounds", 1)) + 1)
        metafunc.parametrize("variant", [Variant(kind, number) for number in rounds for kind in kinds], ids=str)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Cases that are not wanted are deselected: a skip would look like a test that passed."""
    cases = [item for item in items if item.get_closest_marker("chaos")]
    chosen = str(config.getoption("chaos", "some"))
    if chosen == "some":
        wanted = {item for item in cases if _mark(item)["some"] and _kind(item) == "exactly_once"}
    elif chosen == "third":
        wanted = set(thirds(cases)[_which_third(config) - 1])
    else:
        wanted = set(items)
    dropped = [
        item for item in items if item not in wanted and (item in cases or item.get_closest_marker("whole_suite"))
    ]
    config.hook.pytest_deselected(items=dropped)
    items[:] = [item for item in items if item not in dropped]
    items.sort(key=lambda item: item.get_closest_marker("whole_suite") is not None)


def thirds(cases: list[pytest.Item]) -> list[list[pytest.Item]]:
    """The cases in three parts that take about as long: the longest first, each to the part that has least."""
    parts: list[list[pytest.Item]] = [[], [], []]
    loads = [0, 0, 0]
    for case in sorted(cases, key=lambda item: (-_mark(item)["seconds"], item.nodeid)):
        least = loads.index(min(loads))
        parts[least].append(case)
        loads[least] += _mark(case)["seconds"]
    return parts


def _which_third(config: pytest.Config) -> int:
    chosen = str(config.getoption("third"))
    return dt.datetime.now(dt.UTC).timetuple().tm_yday % 3 + 1 if chosen == "auto" else int(chosen)


def _chosen(config: pytest.Config) -> str:
    chosen = str(config.getoption("chaos", "some"))
    return f"third {_which_third(config)} of 3" if chosen == "third" else chosen


def _mark(item: pytest.Item) -> dict[str, Any]:
    mark = item.get_closest_marker("chaos")
    assert mark is not None
    return {"some": False, "broker": "shared", "worker": {}, "autoscale": {}, "bypass": 0.0} | mark.kwargs


def _kind(item: pytest.Item) -> str:
    variant = item.callspec.params["variant"]  # type: ignore[attr-defined]
    return str(variant.kind)


@pytest.fixture(scope="session")
def champion(
    servers: str, tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]
) -> tuple[dict[str, Any], Release, Arm]:
    """A model for all cases, trained once: the settings of models, its release, and the arm that makes it champion."""
    folder = tmp_path_factory.mktemp("champion")
    model = {
        "name": MODEL,
        "store": str(folder / "models"),
        "cache": folder / "cache",
        "signing_key": keys[0],
        "trusted_keys": (keys[1],),
        "label": "fraud",
    }
    settings = _settings(servers, model)
    cluster.create_topics(settings)
    train_champion(settings, folder)
    registry = read_registry(settings)
    (release,) = registry.releases.values()
    verified(settings, release.version, release)  # into the cache: a worker whose disk is full finds it there
    return model, release, registry.routes[MODEL].route.champion


@pytest.fixture(scope="session")
def short_session_broker(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Broker]:
    """The broker of the KIP-848 cases."""
    with _started(tmp_path_factory.mktemp("kip848"), SHORT_CONSUMER_SESSION) as broker:
        yield broker


@pytest.fixture
def case(
    request: pytest.FixtureRequest, variant: Variant, champion: tuple[dict[str, Any], Release, Arm], tmp_path: Path
) -> Iterator[Case]:
    """The case: its stream is there, a champion too; workers and load it starts itself."""
    config, mark = request.config, _mark(request.node)
    few = str(config.getoption("chaos", "some")) == "some"
    model, release, arm = champion
    worker = {
        "session_timeout_seconds": 6,
        "delivery": "at_least_once" if variant.kind == "at_least_once" else "exactly_once",
        "group_protocol": "consumer" if variant.kind == "kip848" else "classic",
    }
    with ExitStack() as stack:
        broker = proxy = None
        if variant.kind == "kip848":
            broker = request.getfixturevalue("short_session_broker")
        elif mark["broker"] != "shared":
            broker = stack.enter_context(_started(tmp_path / "broker", OWN_SETTINGS[mark["broker"]]))
        if broker and mark["broker"] == "proxied":
            proxy = stack.enter_context(Proxy(broker.proxy_port, broker.behind_proxy))
        servers = broker.servers if broker else request.getfixturevalue("servers")
        bypass = {"secret_file": tmp_path / "bypass.key", "max_share": 1.0}
        sections = {"worker": worker | mark["worker"], "autoscale": mark["autoscale"], "bypass": bypass}
        settings = _settings(servers, model, **sections)
        cluster.create_topics(settings)
        announce(settings, release, arm)
        if mark["bypass"]:
            make_secret(tmp_path / "bypass.key")
            set_switch(settings, switch_of(settings, mark["bypass"]), None)
        seed = config.stash[SEED] if variant.round == 1 else f"{config.stash[SEED]}-{variant.round}"
        name = f"{request.node.originalname.removeprefix('test_').replace('_', ' ')} [{variant.kind}]"
        case = Case(name, seed, settings, tmp_path, FEW_EVENTS if few else EVENTS, broker, proxy)
        say(config, f"{name}: seed {seed}")
        try:
            yield case
        finally:
            case.end()
            if case.result:
                config.stash[RESULTS].append(case.result)
                say(config, case.result.row)


@contextmanager
def _started(data: Path, settings: dict[str, str]) -> Iterator[Broker]:
    broker = Broker(data, settings)
    broker.start()
    try:
        yield broker
    finally:
        broker.stop()


def _settings(servers: str, model: dict[str, Any], **sections: dict[str, Any]) -> Settings:
    return Settings(
        stream={
            "name": f"chaos-{uuid.uuid4().hex[:12]}",
            "fields": FIELDS,
            "id_field": "transaction_id",
            "time_field": "time",
            "key_field": "customer_id",
        },
        kafka={"bootstrap_servers": servers},
        topics={"partitions": 8},
        model=model,
        **sections,
    )


def say(config: pytest.Config, line: str) -> None:
    """A line on the terminal at once, whatever is captured."""
    reporter, capture = (config.pluginmanager.getplugin(name) for name in ("terminalreporter", "capturemanager"))
    if reporter is not None and capture is not None:
        with capture.global_and_fixture_disabled():
            reporter.ensure_newline()
            reporter.write_line(line)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    results = config.stash.get(RESULTS, [])
    if not results:
        return
    terminalreporter.section(f"chaos: {_chosen(config)}, seed {config.stash[SEED]}")
    terminalreporter.write_line("   events  missing  doubled  seconds  silence  case")
    for result in results:
        terminalreporter.write_line(result.row)
    events = sum(result.events for result in results)
    missing, doubled = (sum(getattr(result, what) for result in results) for what in ("missing", "doubled"))
    terminalreporter.write_line(f"{events:9,}  {missing:7,}  {doubled:7,}  all {len(results)} cases")
