"""`ecluse model status` asks real workers what they run."""

from collections.abc import Callable
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest
from confluent_kafka import Consumer

from ecluse import kafka
from ecluse.contract.records import Arm
from ecluse.model import routes
from ecluse.model.manifest import ONNX
from ecluse.model.registry import read_registry
from ecluse.settings import Settings
from tests.artefacts import publish_small
from tests.cli import ecluse, json_of
from tests.workers import wait_until, worker


def told(settings: Settings) -> tuple[bool, list[dict[str, Any]]]:
    """What the command says of the workers, and whether all is well."""
    result = ecluse(settings, "model", "status", "--json")
    answer = json_of(result)
    assert result.exit_code == (0 if answer["ok"] else 1)
    workers = answer["workers"]
    assert isinstance(workers, list)
    return bool(answer["ok"]), workers


def all_run(settings: Settings, state: str, version: int) -> Callable[[], bool]:
    """Whether two workers that hold all partitions are in a state and run a version."""

    def look() -> bool:
        ok, workers = told(settings)
        held = sorted(partition for each in workers for partition in each["partitions"])
        return (
            ok == (state != "degraded")
            and [each["state"] for each in workers] == [state] * 2
            and [each["answer"]["version"] for each in workers] == [version] * 2
            and held == list(range(settings.topics.partitions))
        )

    return look


def test_each_worker_tells_what_it_runs_after_a_promotion_and_after_a_bad_one(stream: Settings) -> None:
    publish_small(stream)
    assert told(stream) == (True, [])
    with ExitStack() as stack:
        for _ in range(2):
            stack.enter_context(worker(stream, ready=False))
        wait_until("both serve version 1", all_run(stream, "serves", 1))
        publish_small(stream, champion=False)
        promoted = json_of(ecluse(stream, "model", "promote", "2", "--json"))
        wait_until("both serve version 2", all_run(stream, "serves", 2))
        shown = ecluse(stream, "model", "status")
        assert shown.stdout.startswith(
            f"Version 2 of model {stream.model_name} is champion, by revision {promoted['revision']}.\n"
        )
        assert shown.stdout.count("serves") == 2

        break_next(stream)
        wait_until("both are degraded", all_run(stream, "degraded", 2))
        _, workers = told(stream)
        assert all(f"{ONNX} of version 3" in each["why"] for each in workers)
        shown = ecluse(stream, "model", "status")
        assert (shown.exit_code, shown.stdout.count("degraded: Version 3 of model")) == (1, 2)
        fault = doctor_on_workers(stream)
        assert not fault["ok"] and "ecluse model rollback" in fault["advice"]
        assert "2 degraded" in fault["seen"] and f"{ONNX} of version 3" in fault["seen"]

        assert ecluse(stream, "model", "rollback").exit_code == 0
        wait_until("both are well again", all_run(stream, "serves", 2))
        assert doctor_on_workers(stream)["ok"]


def doctor_on_workers(settings: Settings) -> dict[str, Any]:
    """What `ecluse doctor` makes of the workers."""
    checks: Any = json_of(ecluse(settings, "doctor", "--json"))["checks"]
    return next(check for check in checks if check["name"] == "workers")


def break_next(settings: Settings) -> None:
    """Publish a champion whose file was changed in the store before any worker had it."""
    manifest = publish_small(settings, champion=False)
    file = Path(settings.model.store) / settings.model_name / str(manifest.version) / ONNX
    file.write_bytes(b"\xff" + file.read_bytes()[1:])
    seen = read_registry(settings).routes[settings.model_name].revision
    routes.promote(settings, Arm("champion", manifest.version, manifest.thresholds), seen)


@pytest.mark.parametrize("protocol", ["classic", "consumer"])
def test_a_worker_that_cannot_be_asked_is_shown_with_its_address(stream: Settings, protocol: str) -> None:
    publish_small(stream)
    away = {"client.id": "ecluse/elsewhere-7/1", "group.protocol": protocol}
    with closing(Consumer(kafka.consumer_config(stream, stream.group) | away)) as member:
        member.subscribe([stream.names.events])
        wait_until("it holds partitions", lambda: member.poll(0.1) is None and len(member.assignment()) == 4)
        result = ecluse(stream, "model", "status")
        assert doctor_on_workers(stream)["ok"], "it may listen on another machine"
    assert result.exit_code == 1
    row = " ".join(result.stdout.splitlines()[-1].split())
    assert row == "elsewhere-7 ? ? ? unreachable at 127.0.0.1:1 0-3"
