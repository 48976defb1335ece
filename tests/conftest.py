"""The broker of a test run, and a fresh stream for each test."""

import os
import tempfile
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from console import broker as dev_broker
from ecluse import cluster
from ecluse.model.signing import make_development_keys
from ecluse.settings import Settings

# In a fresh clone Hypothesis makes its table of Unicode first, within the first test that draws text: that is no slow test.
# A busy machine is none either: no test has a deadline in milliseconds.
hypothesis_settings.register_profile("ecluse", suppress_health_check=[HealthCheck.too_slow], deadline=None)
hypothesis_settings.load_profile("ecluse")

# A broker that lives for a test or a run repays no optimised code: so it needs half the processor.
os.environ.setdefault("JDK_JAVA_OPTIONS", "-XX:TieredStopAtLevel=1 -XX:+UseSerialGC")

FIELDS = {
    "transaction_id": {"type": "text", "required": False},
    "time": {"type": "time", "required": False},
    "customer_id": {"type": "text", "required": False},
    "amount": "number",
    "terminal_risk_30d": "number",
    "night": "integer",
}


@pytest.fixture(scope="session")
def servers() -> Iterator[str]:
    """A real broker of this run's own, on a free port and a fresh folder. Where it cannot start, its tests fail."""
    with tempfile.TemporaryDirectory(prefix="ecluse-broker-") as folder:
        data = Path(folder)
        try:
            yield dev_broker.start(data, port=0).servers
        finally:
            dev_broker.stop(data)


MakeSettings = Callable[..., Settings]


@pytest.fixture(scope="session")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """Development keys, private and public, of this test run."""
    return make_development_keys(tmp_path_factory.mktemp("keys"))


@pytest.fixture
def make_settings(tmp_path: Path, keys: tuple[Path, Path]) -> MakeSettings:
    """Builds settings for a stream that no other test knows; sections are given as keyword dictionaries."""

    def make(servers: str = "127.0.0.1:1", **sections: dict[str, Any]) -> Settings:
        name = f"t-{uuid.uuid4().hex[:12]}"
        stream = {
            "name": name,
            "fields": FIELDS,
            "id_field": "transaction_id",
            "time_field": "time",
            "key_field": "customer_id",
        }
        return Settings(
            stream=stream | sections.pop("stream", {}),
            kafka={"bootstrap_servers": servers},
            topics={"partitions": 4} | sections.pop("topics", {}),
            model={
                "store": str(tmp_path / "models"),
                "cache": tmp_path / "cache",
                "signing_key": keys[0],
                "trusted_keys": (keys[1],),
                "label": "fraud",
            }
            | sections.pop("model", {}),
            **sections,
        )

    return make


@pytest.fixture
def stream(servers: str, make_settings: MakeSettings) -> Settings:
    """A fresh stream with its topics, on the real broker."""
    settings = make_settings(servers)
    cluster.create_topics(settings)
    return settings
