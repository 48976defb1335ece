"""`ecluse model list|show|promote|rollback`, with whole artefacts on a real broker."""

import shutil
from pathlib import Path

import msgspec
import pytest

from ecluse.contract.records import Arm, Release, Thresholds
from ecluse.model import routes
from ecluse.model.artefact import verified
from ecluse.model.manifest import ONNX
from ecluse.model.registry import Routed, read_registry
from ecluse.settings import Settings
from tests.artefacts import publish_small
from tests.cli import ecluse, json_of


def routed(settings: Settings) -> Routed:
    return read_registry(settings).routes[settings.model_name]


def stored(settings: Settings, version: int) -> Path:
    return Path(settings.model.store) / settings.model_name / str(version)


def test_versions_are_promoted_and_rolled_back_with_the_thresholds_of_their_manifests(stream: Settings) -> None:
    name = stream.model_name
    for block in (0.7, 0.8):
        publish_small(stream, champion=False, block=block)
    first = ecluse(stream, "model", "promote", "1")
    assert (
        first.stdout == f"Version 1 of model {name} is champion as the first, by revision {routed(stream).revision}.\n"
    )
    second = json_of(ecluse(stream, "model", "promote", "2", "--json"))
    assert second == {"model": name, "from": 1, "to": 2, "revision": routed(stream).revision, "changed": True}
    assert routed(stream).route.champion == Arm("champion", 2, Thresholds(0.5, 0.8))

    again = ecluse(stream, "model", "promote", "2")
    assert (again.exit_code, "is champion already, by revision" in again.stdout) == (0, True)
    assert json_of(ecluse(stream, "model", "promote", "2", "--json"))["changed"] is False
    assert routed(stream).revision == second["revision"], "nothing was written"

    back = ecluse(stream, "model", "rollback")
    assert f"Version 1 of model {name} is champion in the place of version 2, by revision" in back.stdout
    assert routed(stream).route.champion == Arm("champion", 1, Thresholds(0.5, 0.7))
    last = ecluse(stream, "model", "rollback")
    assert last.exit_code == 1
    assert str(last.exception) == f"The route of model {name} remembers no earlier champion."


def test_a_bad_artefact_is_refused_before_anything_is_written(stream: Settings) -> None:
    publish_small(stream)
    publish_small(stream, champion=False)
    publish_small(stream)
    before = routed(stream)
    for version in (1, 2):
        with (stored(stream, version) / ONNX).open("r+b") as file:
            file.write(b"\xff")
    shutil.rmtree(stream.model.cache, ignore_errors=True)
    for command, sentence in {
        ("promote", "2"): f"The file {ONNX} of version 2 .* was changed",
        ("promote", "9"): "Version 9 of model .* was never released",
        ("rollback",): f"The file {ONNX} of version 1 .* was changed",
    }.items():
        result = ecluse(stream, "model", *command)
        with pytest.raises(Exception, match=sentence):
            raise result.exception or AssertionError(result.stdout)
    assert routed(stream) == before


def test_promote_looks_into_the_store_and_rollback_is_content_with_a_good_cache(stream: Settings) -> None:
    for champion in (True, True, False):
        verified(stream, publish_small(stream, champion=champion).version, None)
    before = routed(stream)
    for version in (1, 3):
        with (stored(stream, version) / ONNX).open("r+b") as file:
            file.write(b"\xff")
    refused = ecluse(stream, "model", "promote", "3")
    assert refused.exit_code == 1 and f"The file {ONNX} of version 3" in str(refused.exception)
    assert routed(stream) == before
    assert ecluse(stream, "model", "rollback").exit_code == 0
    assert routed(stream).route.champion.version == 1
    again = ecluse(stream, "model", "promote", "1")
    assert (again.exit_code, "is champion already" in again.stdout) == (0, True)


def test_a_model_that_does_not_fit_the_stream_is_not_promoted(stream: Settings) -> None:
    publish_small(stream, champion=False)
    fields = {"paid": stream.stream.fields["amount"]}
    other = stream.model_copy(
        update={"stream": stream.stream.model_copy(update={"fields": fields, "id_field": None, "time_field": None})}
    )
    result = ecluse(other, "model", "promote", "1")
    assert result.exit_code == 1 and "amount" in str(result.exception)
    assert read_registry(stream).routes == {}


def test_who_decided_by_an_older_route_is_told_and_writes_nothing(
    stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    for _ in range(3):
        publish_small(stream)
    seen, actually = routed(stream), routes.promote

    def after_another(settings: Settings, champion: Arm, revision: int | None) -> int:
        actually(settings, Arm("champion", 1, Thresholds(0.5, 0.9)), seen.revision)
        return actually(settings, champion, revision)

    monkeypatch.setattr(routes, "promote", after_another)
    result = ecluse(stream, "model", "promote", "2")
    now = routed(stream)
    assert result.exit_code == 1
    assert f"was changed meanwhile: version 1 is champion by revision {now.revision}." in str(result.exception)
    assert [arm.version for arm in now.route.history] == [3, 2, 1]


def test_the_list_tells_what_each_version_is_to_the_stream(stream: Settings) -> None:
    assert "no version of model" in ecluse(stream, "model", "list").stderr
    for _ in range(4):
        publish_small(stream, champion=False)
    for version in ("1", "2"):
        assert ecluse(stream, "model", "promote", version).exit_code == 0
    shutil.rmtree(stored(stream, 1))
    shutil.copytree(stored(stream, 2), stored(stream, 6))
    manifest = stored(stream, 4) / "manifest.json"
    manifest.write_bytes(manifest.read_bytes().replace(b"0.75", b"0.95"))
    routes.announce(stream, Release(stream.model_name, 5, 1.8e9, "0" * 64, 2**20))

    listed = json_of(ecluse(stream, "model", "list", "--json"))
    versions = listed["versions"]
    assert isinstance(versions, list)
    assert (listed["champion"], listed["revision"]) == (2, routed(stream).revision)
    assert {each["version"]: each["state"] for each in versions} == {
        6: "stored, not released",
        5: "released, not in the store",
        4: "released",
        3: "released",
        2: "champion",
        1: "former champion, not in the store",
    }
    assert [each["version"] for each in versions if each["fault"]] == [6, 4]
    second = next(each for each in versions if each["version"] == 2)
    assert (second["form"], second["metrics"]["average_precision"]) == ("ONNX", 0.75)

    shown = ecluse(stream, "model", "list")
    lines = {line.split()[0]: line for line in shown.stdout.splitlines()[2:]}
    assert "ONNX" in lines["2"] and "0.750" in lines["2"] and lines["2"].rstrip().endswith("champion")
    assert "1.0 MB" in lines["5"] and "2027-01-15" in lines["5"]
    assert "released, cannot be" in lines["4"]  # and "used", which wraps where the terminal is narrow
    assert "Version 4 cannot be used: The manifest of version 4" in shown.stderr


def test_a_version_is_shown_whole_and_a_bad_one_with_what_is_wrong(stream: Settings) -> None:
    nothing = ecluse(stream, "model", "show")
    assert (nothing.exit_code, "is champion: name one" in str(nothing.exception)) == (1, True)
    publish_small(stream)
    publish_small(stream, champion=False)
    shown = ecluse(stream, "model", "show")
    assert shown.exit_code == 0
    for part in (
        f"{stream.model_name}, version 1",
        "amount: number of amount",
        "average_precision: 0.75",
        "scikit-learn 1",
        "review from 0.5000",
        f"signature by {stream.model.trusted_keys[0]}",
        f"state champion by revision {routed(stream).revision}",
    ):
        assert part in " ".join(shown.stdout.split())
    second = json_of(ecluse(stream, "model", "show", "2", "--json"))
    assert (second["state"], second["fault"]) == ("released", "")
    assert second["signed_by"] == str(stream.model.trusted_keys[0])

    (stored(stream, 2) / "extra.py").write_text("")
    shutil.rmtree(stream.model.cache)
    bad = ecluse(stream, "model", "show", "2", "--json")
    assert bad.exit_code == 1 and "must not be used" in bad.stderr
    answer = msgspec.json.decode(bad.stdout)
    assert answer["signed_by"] is None and "extra.py" in answer["fault"]
    assert "does not hold" in ecluse(stream, "model", "show", "2").stdout
    missing = ecluse(stream, "model", "show", "7")
    assert (missing.exit_code, "holds no version 7" in str(missing.exception)) == (1, True)
