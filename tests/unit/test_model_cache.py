"""The cache of models: a good copy is used whatever becomes of the store; a damaged or broken-off one is fetched again."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from ecluse.contract.records import Release
from ecluse.errors import ModelError, ModelNotFound, SettingsError
from ecluse.model.artefact import load_model, verified
from ecluse.model.manifest import MANIFEST, ONNX, SAMPLES, SIGNATURE
from ecluse.model.signing import make_development_keys
from ecluse.settings import Settings
from tests.conftest import MakeSettings
from tests.unit.artefacts import FILES, cached, empty_cache, flip, home, refused, sign, store, with_model


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
def release(settings: Settings) -> Release:
    """Of a sound artefact, version 1."""
    return store(settings)


def test_a_disk_that_is_full_is_told_and_leaves_nothing(
    settings: Settings, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage

    def on_a_full_disk(into: Path) -> Any:
        (into / ONNX).symlink_to("/dev/full")
        return usage(into)

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "disk_usage", on_a_full_disk)
        refused(settings, release, "fetch", "cache of models cannot be used: No space left on device", ModelError)
    place = settings.model.cache / settings.model_name
    assert [path for path in place.iterdir() if path.is_dir()] == []
    assert load_model(settings, 1, release).version == 1


def test_on_a_disk_with_little_room_the_cache_gives_up_what_was_not_used_for_longest(
    settings: Settings, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    releases = {1: release} | {version: store(settings, version) for version in (2, 3, 4)}
    for version in (1, 2, 3):
        load_model(settings, version, releases[version])
    load_model(settings, 1, release)  # used last: it may be what scores
    place = settings.model.cache / settings.model_name

    def cached() -> set[int]:
        return {int(path.name.partition("-")[0]) for path in place.iterdir() if not path.name.startswith(".")}

    def with_room_for_one_less_than_there_are(into: Path) -> Any:
        return SimpleNamespace(free=0 if len(cached() - {4}) > 2 else 2**40)

    monkeypatch.setattr(shutil, "disk_usage", with_room_for_one_less_than_there_are)
    assert load_model(settings, 4, releases[4]).version == 4
    assert cached() == {1, 3, 4}


def test_a_cache_that_cannot_be_written_is_told(settings: Settings, release: Release, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    refused(
        with_model(settings, cache=tmp_path / "file"), release, "fetch", "cache of models cannot be used", ModelError
    )


def test_a_store_that_is_away_does_not_matter_to_a_good_cache(settings: Settings, release: Release) -> None:
    load_model(settings, 1, release)
    away = with_model(settings, store="s3://nowhere/models")
    assert load_model(away, 1, release).version == 1
    shutil.rmtree(settings.model.store)
    assert load_model(settings, 1, release).version == 1
    empty_cache(settings)
    refused(settings, release, "fetch", "holds no version 1", ModelNotFound)


def test_a_good_copy_in_the_cache_is_never_replaced(settings: Settings, release: Release) -> None:
    """Another process may be about to load it."""
    _, folder = verified(settings, 1, release)
    before = folder.stat().st_ino
    for known in (release, None):
        assert verified(settings, 1, known)[1] == folder
    assert cached(settings).stat().st_ino == before


@pytest.mark.parametrize("file", [MANIFEST, ONNX, SAMPLES, SIGNATURE])
def test_a_cache_that_was_damaged_is_fetched_again(settings: Settings, release: Release, file: str) -> None:
    load_model(settings, 1, release)
    path = cached(settings) / file
    sound = path.read_bytes()
    for damage in (lambda: flip(path, 40), path.unlink, lambda: (cached(settings) / "extra").write_bytes(b"")):
        damage()
        assert load_model(settings, 1, release).version == 1
        assert path.read_bytes() == sound
        assert sorted(file.name for file in cached(settings).iterdir()) == sorted([*FILES, MANIFEST, SIGNATURE])


def test_a_cached_artefact_is_fetched_again_when_its_key_is_no_longer_trusted(
    settings: Settings, release: Release, tmp_path: Path
) -> None:
    load_model(settings, 1, release)
    new = make_development_keys(tmp_path / "new")
    changed = with_model(settings, signing_key=new[0], trusted_keys=(new[1],))
    refused(changed, release, "verify", "No trusted key signed")
    sign(changed, home(settings))
    assert load_model(changed, 1, release).version == 1
    refused(settings, release, "verify", "No trusted key signed")


def test_keys_that_cannot_be_used_are_told_before_anything_is_fetched(settings: Settings, release: Release) -> None:
    for changes in ({"production": True}, {"trusted_keys": ()}, {"trusted_keys": (Path("/nowhere.pem"),)}):
        with pytest.raises(SettingsError):
            load_model(with_model(settings, **changes), 1, release)
    assert not settings.model.cache.exists()


def test_what_a_killed_process_left_of_its_download_goes_with_the_next(
    settings: Settings, release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    place = settings.model.cache / settings.model_name

    def partial() -> int:
        return sum(path.is_dir() and path.name.startswith(".") for path in place.iterdir())

    class Killed(BaseException):
        """Stands for a SIGKILL: nothing is cleared away after it."""

    def killed(done: int, total: int) -> None:
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(shutil, "rmtree", lambda *_, **__: None)
        load_model(settings, 1, release, progress=killed)
    assert partial() == 1
    seen: list[int] = []
    load_model(settings, 1, release, progress=lambda *_: seen.append(partial()))
    assert set(seen) == {1}
    assert partial() == 0


def test_a_download_that_was_broken_off_is_cleared_away_in_time(settings: Settings, release: Release) -> None:
    place = settings.model.cache / settings.model_name
    for name, age in {".abandoned": 200_000, ".running": 10}.items():
        (place / name).mkdir(parents=True)
        before = place.stat().st_mtime - age
        os.utime(place / name, (before, before))
    load_model(settings, 1, release)
    assert {path.name for path in place.iterdir() if path.name.startswith(".")} == {".running", ".lock"}


def test_the_cache_keeps_the_versions_that_were_used_last(settings: Settings) -> None:
    releases = {version: store(settings, version) for version in range(1, 7)}
    place = settings.model.cache / settings.model_name
    ages = iter(range(1, 20))
    for version in (1, 2, 3, 4, 1, 5, 6):
        _, folder = verified(settings, version, releases[version])
        moment = 1_000_000_000 + next(ages)
        os.utime(folder, (moment, moment))
    kept = {path.name.split("-")[0] for path in place.iterdir() if path.is_dir()}
    assert kept == {"1", "4", "5", "6"}


FETCH = """
import sys
from pathlib import Path
from ecluse.contract.records import Release
from ecluse.model.artefact import load_model
from ecluse.settings import Settings
settings = Settings.model_validate_json(Path(sys.argv[1]).read_text())
fetched = []
load_model(settings, 1, Release(settings.model_name, 1, 0.0, sys.argv[2], 1), progress=lambda *of: fetched.append(of))
print(bool(fetched))
"""


def test_of_processes_that_start_at_once_one_fetches_and_all_load(
    settings: Settings, release: Release, tmp_path: Path
) -> None:
    (tmp_path / "settings.json").write_text(settings.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-c", FETCH, str(tmp_path / "settings.json"), release.manifest_sha256]
    started = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = sorted(process.communicate(timeout=60)[0].strip() for process in started)
    assert said == ["False", "True"]
    cached(settings)
