"""A stream whose model's next version weighs a gigabyte: grown, written, drafted and published on the spot."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from ecluse import cluster
from ecluse.contract.records import Arm, Release
from ecluse.model.manifest import ONNX
from ecluse.model.registry import read_registry
from ecluse.model.routes import announce
from ecluse.settings import Settings
from retrain.publish import publish
from tests.conftest import FIELDS
from tests.study import forest
from tests.study.tables import show
from tests.workers import train_champion

MODEL = "study"
GIGABYTE = 1_000_000_000
#: A tree knows its rows by heart, in about 1.1 nodes for each, of 41 bytes.
ROWS, TREES = 1_000_000, 23


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.getgroup("study").addoption("--study", action="store_true", help="run what takes minutes and gigabytes")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "study: takes minutes and gigabytes, and runs with --study only")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselected where not asked for: a skip would look like a test that passed."""
    if not config.getoption("study", default=False):
        dropped = [item for item in items if item.get_closest_marker("study")]
        config.hook.pytest_deselected(items=dropped)
        items[:] = [item for item in items if item not in dropped]


@dataclass(frozen=True)
class Large:
    """The settings of models, and the releases and arms of a small version and of a large one."""

    model: dict[str, Any]
    releases: tuple[Release, Release]
    small: Arm
    large: Arm

    def settings(self, servers: str) -> Settings:
        """Settings for a stream that no other test knows."""
        name = f"t-{uuid.uuid4().hex[:12]}"
        stream = {"name": name, "fields": FIELDS, "id_field": "transaction_id", "key_field": "customer_id"}
        return Settings(stream=stream, kafka={"bootstrap_servers": servers}, topics={"partitions": 4}, model=self.model)


@pytest.fixture(scope="session")
def large(servers: str, tmp_path_factory: pytest.TempPathFactory, keys: tuple[Path, Path]) -> Large:
    """A small champion and a version of a gigabyte, in a store of their own."""
    folder = tmp_path_factory.mktemp("large")
    model = {
        "name": MODEL,
        "store": str(folder / "models"),
        "cache": folder / "cache",
        "signing_key": keys[0],
        "trusted_keys": (keys[1],),
        "label": "fraud",
    }
    made = Large(model, (None, None), None, None)  # type: ignore[arg-type] # known below
    settings = made.settings(servers)
    cluster.create_topics(settings)
    train_champion(settings, folder)
    draft = folder / "draft"
    draft.mkdir()
    timed: dict[str, float] = {}
    drafted = forest.in_a_process(settings, draft, ROWS, TREES)
    timed |= drafted.seconds
    size = (draft / ONNX).stat().st_size
    began = time.monotonic()
    manifest, _ = publish(settings, draft, champion=False)
    timed["publish"] = time.monotonic() - began
    show(
        f"A forest of {TREES} trees, {drafted.nodes:,} nodes, ONNX of {size:,} bytes; it takes "
        f"{manifest.memory_bytes / 2**20:,.0f} MiB of memory, so the manifest; seed {forest.SEED}",
        {"step": list(timed), "seconds": [f"{seconds:.1f}" for seconds in timed.values()]},
    )
    assert size >= GIGABYTE
    registry = read_registry(settings)
    first, second = (registry.releases[MODEL, version] for version in (1, 2))
    arms = (registry.routes[MODEL].route.champion, Arm("champion", 2, manifest.thresholds))
    return Large(model, (first, second), *arms)


@pytest.fixture
def stream(servers: str, large: Large) -> Callable[..., tuple[Settings, int]]:
    """Makes a fresh stream, both versions released, with the champion that is named; and the revision of its route."""

    def make(champion: Arm) -> tuple[Settings, int]:
        settings = large.settings(servers)
        cluster.create_topics(settings)
        for release in large.releases:
            announce(settings, release, champion if release.version == champion.version else None)
        return settings, read_registry(settings).routes[MODEL].revision

    return make
