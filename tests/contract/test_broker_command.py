"""`ecluse broker` as a person runs it."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from console import broker
from ecluse.sections import KafkaSettings
from tests.cli import ecluse, json_of


@pytest.fixture(autouse=True)
def no_cluster(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("KAFKA_BOOTSTRAP_SERVERS", raising=False)
    monkeypatch.chdir(tmp_path)


def run(*args: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, to see what `run` makes of errors."""
    command = [sys.executable, "-c", "from console.main import run; run()", *args]
    env = os.environ | {"PYTHONPATH": str(Path(broker.__file__).parent.parent), "COLUMNS": "200"} | environment
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=env, check=False)


def test_two_brokers_side_by_side_do_not_collide(servers: str, tmp_path: Path) -> None:
    data = str(tmp_path / "second")
    try:
        started = json_of(ecluse(None, "broker", "start", "--port", "0", "--data", data, "--json"))
        second = str(started["servers"])
        assert second != servers
        assert broker.answers(second) and broker.answers(servers)
        again = json_of(ecluse(None, "broker", "start", "--port", "0", "--data", data, "--json"))
        assert again == started
        status = ecluse(None, "broker", "status", "--data", data)
        assert (status.exit_code, second in status.stdout) == (0, True)
    finally:
        stopped = ecluse(None, "broker", "stop", "--data", data)
    assert stopped.stdout == "The broker has stopped.\n"
    assert not broker.answers(second)
    assert broker.answers(servers)
    assert ecluse(None, "broker", "status", "--data", data).exit_code == 1


@pytest.mark.parametrize("written_by", [None, "99.0.0"])
def test_topics_of_a_newer_kafka_are_refused_with_a_sentence(tmp_path: Path, written_by: str | None) -> None:
    data = tmp_path / "newer"
    (data / "logs").mkdir(parents=True)
    (data / "logs" / "meta.properties").touch()
    if written_by is not None:
        (data / "kafka-version").write_text(written_by)
    done = run("broker", "start", "--port", "0", "--data", str(data))
    assert done.returncode == 1
    assert "written by a newer Kafka" in done.stderr and "Remove the folder" in done.stderr


def test_status_and_stop_where_none_runs(tmp_path: Path) -> None:
    status = ecluse(None, "broker", "status", "--data", str(tmp_path))
    assert status.exit_code == 1
    assert "ecluse broker start" in status.stdout
    assert json_of(ecluse(None, "broker", "status", "--data", str(tmp_path), "--json"))["answers"] is False
    stopped = ecluse(None, "broker", "stop", "--data", str(tmp_path))
    assert (stopped.exit_code, stopped.stdout[:14]) == (0, "No broker ran ")


def test_a_cluster_in_the_environment_is_used_instead(
    servers: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", servers)
    result = ecluse(None, "broker", "start", "--data", str(tmp_path / "none"))
    assert result.exit_code == 0
    assert f"everything uses the cluster at {servers}" in result.stdout
    assert not (tmp_path / "none").exists()
    assert ecluse(None, "broker", "status").exit_code == 0
    monkeypatch.setenv("KAFKA_BOOTSTRAP_SERVERS", "127.0.0.1:1")
    assert ecluse(None, "broker", "status").exit_code == 1


def test_missing_java_gets_a_sentence_that_says_what_to_install(tmp_path: Path) -> None:
    done = run("broker", "start", "--data", str(tmp_path / "b"), PATH="")
    assert done.returncode == 1
    assert "needs `java`" in done.stderr and "Install a Java 17 runtime" in done.stderr
    assert "Traceback" not in done.stderr


def test_missing_maven_gets_a_sentence_that_says_what_to_install(tmp_path: Path) -> None:
    java = shutil.which("java")
    assert java is not None
    tools = tmp_path / "bin"
    tools.mkdir()
    (tools / "java").symlink_to(java)
    done = run("broker", "start", "--data", str(tmp_path / "b"), PATH=str(tools), XDG_CACHE_HOME=str(tmp_path / "c"))
    assert done.returncode == 1
    assert "needs `mvn`" in done.stderr and "Install Maven" in done.stderr


def test_a_taken_port_is_named(servers: str, tmp_path: Path) -> None:
    port = servers.rpartition(":")[2]
    done = run("broker", "start", "--port", port, "--data", str(tmp_path / "b"))
    assert done.returncode == 1
    assert f"Port {port} is taken" in done.stderr


def test_the_usual_address_of_clients_is_the_usual_address_of_the_broker() -> None:
    assert KafkaSettings().bootstrap_servers == f"127.0.0.1:{broker.DEFAULT_PORT}"
