"""What a follower of the route does when loading fails, over a registry and a clock that a test sets."""

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import msgspec
import pytest

from ecluse.contract.records import Arm, Release, Route, Switch, Thresholds
from ecluse.errors import BrokerError, ModelRefused, SettingsError
from ecluse.model.registry import Registry, Routed, Switched
from ecluse.model.routes import REMEMBERED
from ecluse.settings import Settings
from ecluse.telemetry import Telemetry
from scoring import live
from scoring.champion import Champion
from scoring.live import LAST_RETRY_SECONDS, RETRY_SECONDS, LiveModel
from tests.conftest import MakeSettings
from tests.workers import wait_until

THRESHOLDS = Thresholds(0.5, 0.9)


def arm(version: int, review: float = 0.5, share: float = 1.0) -> Arm:
    return Arm("champion", version, Thresholds(review, 0.9), share)


def registry(
    settings: Settings, revision: int, *arms: Arm, shadows: tuple[Arm, ...] = (), history: tuple[Arm, ...] = ()
) -> Registry:
    """All versions up to 9 are released; the route of this revision names the arms."""
    name = settings.model_name
    releases = {(name, version): Release(name, version, 0.0, f"{version:064}", 1) for version in range(1, 10)}
    return Registry(releases, {name: Routed(Route(name, arms, 0.0, shadows, history), revision)})


class Reader:
    """Stands for a reader of the topic: what it holds now, what comes later, and what reading to its end gives."""

    def __init__(
        self, now: Registry, *, later: Registry | None = None, answers: Sequence[Registry | Exception] = ()
    ) -> None:
        self.registry, self.later, self.answers = now, later, list(answers)

    def catch_up(self) -> None:
        if self.later is not None:
            self.registry.routes |= self.later.routes

    def read_to_end(self, seconds: float) -> None:
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        self.registry = answer


def reader(now: Registry, later: Registry | None = None) -> Any:
    return Reader(now, later=later)


class Loader:
    """Stands for loading: fails where it is told to, and counts."""

    def __init__(self) -> None:
        self.calls: list[int] = []
        self.error: Exception | None = None

    def __call__(
        self, settings: Settings, arm: Arm, revision: int, release: Release, before: Champion | None, progress: Any
    ) -> Champion:
        self.calls.append(arm.version)
        if self.error is not None:
            raise self.error
        progress(1, 2)
        return Champion(cast(Any, Model(arm.version)), arm, revision, release.manifest_sha256, 0.0)


class Model:
    def __init__(self, version: int) -> None:
        self.name, self.version = "cards", version
        self.manifest = SimpleNamespace(memory_bytes=2**30)


@pytest.fixture
def loader(monkeypatch: pytest.MonkeyPatch) -> Loader:
    found = Loader()
    monkeypatch.setattr(live, "load_champion", found)
    return found


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def settings(make_settings: MakeSettings) -> Settings:
    return make_settings()


@pytest.fixture
def models(settings: Settings, loader: Loader, clock: Clock) -> LiveModel:
    return LiveModel(settings, Telemetry(), clock)


def test_a_version_that_fails_is_tried_again_in_growing_intervals_and_at_once_by_a_new_route(
    settings: Settings, models: LiveModel, loader: Loader, clock: Clock
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    loader.error = ModelRefused("it is bad")
    waits, tried = [], 0.0
    while len(waits) < 9:
        before = len(loader.calls)
        models._keep_up(reader(registry(settings, 2, arm(2))))
        if len(loader.calls) > before:
            waits.append(clock.now - tried)
            tried = clock.now
        clock.now += 0.5
    expected = [RETRY_SECONDS * 2**i for i in range(8)]
    assert waits[1:] == [min(wait, LAST_RETRY_SECONDS) for wait in expected]
    assert models.champion is not None
    assert models.champion.version == 1
    assert "version 1 goes on: it is bad" in models.degraded
    calls = len(loader.calls)
    models._keep_up(reader(registry(settings, 3, arm(3))))
    models._keep_up(reader(registry(settings, 3, arm(3))))
    assert loader.calls[calls:] == [3]


def test_a_route_back_to_what_scores_ends_the_degradation(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    loader.error = ModelRefused("it is bad")
    models._keep_up(reader(registry(settings, 2, arm(2))))
    assert models.degraded
    loader.error = None
    models._keep_up(reader(registry(settings, 3, arm(1))))
    assert models.degraded == ""
    assert models.champion is not None
    assert (models.champion.version, models.champion.revision) == (1, 3)


@pytest.mark.parametrize(
    "routes",
    [
        pytest.param({"arms": (arm(1), arm(2, share=0.1))}, id="a challenger"),
        pytest.param({"arms": (arm(1, share=0.9),)}, id="a share"),
        pytest.param({"arms": (arm(1),), "shadows": (arm(2),)}, id="a shadow"),
    ],
)
def test_a_route_of_an_experiment_is_refused_whole(
    settings: Settings, models: LiveModel, loader: Loader, routes: dict[str, Any]
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(3))))
    models._keep_up(reader(registry(settings, 2, *routes["arms"], shadows=routes.get("shadows", ()))))
    assert "names an experiment" in models.degraded
    assert loader.calls == [3]


def test_a_route_to_a_version_that_was_never_released_is_told_and_served_once_it_is(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    found = registry(settings, 1, arm(9))
    release = found.releases.pop((settings.model_name, 9))
    models._keep_up(reader(found))
    assert "never released" in models.degraded
    found.releases[settings.model_name, 9] = release
    models._keep_up(reader(found))
    assert models.champion is not None
    assert models.champion.version == 9


def test_a_version_that_fails_in_a_way_nobody_thought_of_is_not_tried_again_at_once(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    loader.error = MemoryError()
    served: list[bool] = []
    models.up_to_date(lambda: served.append(True))
    models._answer(cast(Any, Reader(Registry(), answers=[registry(settings, 2, arm(2))])))
    models._keep_up(reader(registry(settings, 2, arm(2))))
    assert loader.calls == [1, 2]
    assert served == [True]
    assert "version 1 goes on: MemoryError" in models.degraded


def test_a_version_that_is_rolled_back_while_it_loads_never_scores(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    taken: list[tuple[int, int]] = []
    models.hand_over_to(lambda champion: taken.append((champion.version, champion.revision)))
    models._keep_up(reader(registry(settings, 2, arm(2)), later=registry(settings, 3, arm(1))))
    assert taken == [(1, 1), (1, 3)]


def test_a_version_that_is_rolled_back_twice_while_it_loads_never_scores(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(2), history=(arm(1),))))
    taken: list[tuple[int, int]] = []
    models.hand_over_to(lambda champion: taken.append((champion.version, champion.revision)))
    promoted = registry(settings, 2, arm(3), history=(arm(2), arm(1)))
    models._keep_up(reader(promoted, later=registry(settings, 4, arm(1))))
    assert loader.calls == [2, 3, 1]
    assert taken == [(2, 1), (1, 4)]


def test_a_first_version_that_is_rolled_back_while_it_loads_never_scores(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    promoted = registry(settings, 2, arm(3), history=(arm(2),))
    models._keep_up(reader(promoted, later=registry(settings, 3, arm(2))))
    assert loader.calls == [3, 2]
    assert models.champion is not None
    assert (models.champion.version, models.champion.revision) == (2, 3)


def test_more_promotions_than_a_route_remembers_do_not_keep_a_version_from_scoring(
    settings: Settings, models: LiveModel
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    later = registry(settings, 20, arm(9), history=tuple(arm(3 + i % 5) for i in range(REMEMBERED)))
    models._keep_up(reader(registry(settings, 2, arm(2), history=(arm(1),)), later=later))
    assert models.champion is not None
    assert models.champion.revision == 2


def test_of_a_version_that_fails_again_and_again_nothing_stays_in_memory(
    settings: Settings, models: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    made: list[weakref.ref[Model]] = []
    given: list[bool] = []

    def fails(*_: Any) -> Champion:
        model = Model(2)
        made.append(weakref.ref(model))
        raise ModelRefused(f"version {model.version} gives its own sample rows other scores")

    monkeypatch.setattr(live, "load_champion", fails)
    monkeypatch.setattr(live, "give_back", lambda: given.append(True))
    gc.disable()  # what only a collection would free, stays
    try:
        large = registry(settings, 2, arm(2))
        release = large.releases[settings.model_name, 2]
        large.releases[settings.model_name, 2] = msgspec.structs.replace(release, size_bytes=2**30)
        models._keep_up(reader(large))
        assert "other scores" in models.degraded
        assert [model() for model in made] == [None]
        models._clear_up()
        models._clear_up()
        assert given == [True]
    finally:
        gc.enable()


def test_an_outage_is_told_each_time(
    settings: Settings, models: LiveModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    opened: list[int] = []

    @contextmanager
    def on_and_off(settings: Settings) -> Iterator[Any]:
        opened.append(1)
        if len(opened) % 2:
            raise BrokerError("nobody answers")
        found = Reader(registry(settings, 1, arm(1)), answers=[registry(settings, 1, arm(1))])
        found.poll = lambda seconds: (_ for _ in ()).throw(BrokerError("nobody answers"))  # type: ignore[attr-defined]
        yield found

    monkeypatch.setattr(live, "RegistryReader", on_and_off)
    monkeypatch.setattr(live, "OUTAGE_SECONDS", 0.01)
    with caplog.at_level("WARNING", logger=live.__name__), models:
        wait_until("the second outage is over", lambda: len(opened) > 4)
    assert sum("cannot be read" in line for line in caplog.messages) >= 2


def test_a_version_that_was_routed_while_another_loaded_comes_after_it(settings: Settings, models: LiveModel) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    later = registry(settings, 3, arm(3), history=(arm(2), arm(1)))
    models._keep_up(reader(registry(settings, 2, arm(2), history=(arm(1),)), later=later))
    assert models.champion is not None
    assert models.champion.revision == 2  # or changes that come quicker than a load would never be served


def test_a_model_that_comes_while_somebody_begins_to_take_models_is_not_overtaken_by_the_one_before(
    settings: Settings, models: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    taken: list[int] = []
    about_to = threading.Event()
    mark = models._telemetry.model_swaps.inc
    monkeypatch.setattr(models._telemetry.model_swaps, "inc", lambda: (mark(), about_to.set()))
    newer = threading.Thread(target=lambda: models._keep_up(reader(registry(settings, 2, arm(2)))))

    def take(champion: Champion) -> None:
        if newer.ident is None:
            newer.start()
            assert about_to.wait(10)
            newer.join(0.2)  # without the lock it would be through by then
        taken.append(champion.version)

    models.hand_over_to(take)
    newer.join(10)
    assert taken == [1, 2]


def test_a_models_topic_that_cannot_be_read_is_told(
    settings: Settings, models: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(settings: Settings) -> None:
        raise BrokerError("nobody answers")

    monkeypatch.setattr(live, "RegistryReader", away)
    with models:
        wait_until("it says so", lambda: "cannot be read, which is tried again: nobody answers" in models.degraded)
    assert not models.is_alive()


def test_a_route_that_is_taken_back_ends_the_degradation(settings: Settings, models: LiveModel, loader: Loader) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    loader.error = ModelRefused("it is bad")
    models._keep_up(reader(registry(settings, 2, arm(2))))
    models._keep_up(reader(Registry()))
    assert models.degraded == ""


def test_a_route_that_is_taken_back_leaves_the_model_at_work(settings: Settings, models: LiveModel) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    models._keep_up(reader(Registry()))
    assert models.champion is not None
    assert models.degraded == ""


def test_new_models_are_handed_over_and_the_first_at_once(settings: Settings, models: LiveModel) -> None:
    taken: list[int] = []
    models._keep_up(reader(registry(settings, 1, arm(1))))
    models.hand_over_to(lambda champion: taken.append(champion.version))
    models._keep_up(reader(registry(settings, 2, arm(2))))
    models._keep_up(reader(registry(settings, 2, arm(2))))
    assert taken == [1, 2]


def test_who_asks_is_answered_when_the_newest_route_serves_and_after_an_outage_of_the_broker_too(
    settings: Settings, models: LiveModel
) -> None:
    served: list[int | None] = []
    models.up_to_date(lambda: served.append(models.champion.revision if models.champion else None))
    asked: Any = Reader(Registry(), answers=[BrokerError("away"), registry(settings, 7, arm(1))])
    with pytest.raises(BrokerError):
        models._answer(asked)
    assert served == []
    models._answer(asked)
    models._answer(asked)  # nobody asks: nothing is read
    assert served == [7]


def test_who_asks_is_answered_by_a_worker_that_is_degraded(
    settings: Settings, models: LiveModel, loader: Loader
) -> None:
    models._keep_up(reader(registry(settings, 1, arm(1))))
    loader.error = ModelRefused("it is bad")
    served: list[bool] = []
    models.up_to_date(lambda: served.append(True))
    models._answer(cast(Any, Reader(Registry(), answers=[registry(settings, 2, arm(2))])))
    assert served == [True]


@pytest.mark.parametrize("error", [SettingsError(["no key"])])
def test_without_any_model_a_wrong_configuration_ends_the_wait(
    settings: Settings, models: LiveModel, loader: Loader, error: Exception
) -> None:
    loader.error = error
    models._keep_up(reader(registry(settings, 1, arm(1))))
    with pytest.raises(type(error)):
        models.first()


def test_a_route_that_only_changes_thresholds_takes_the_model_as_it_is(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("scoring.champion.load_model", refuse_to_load)
    release = registry(settings, 1, arm(1)).releases[settings.model_name, 1]
    before = Champion(cast(Any, Model(1)), arm(1), 1, release.manifest_sha256, 2.0)
    after = live.load_champion(settings, arm(1, review=0.7), 5, release, before, lambda done, total: None)
    assert after == replace(before, arm=arm(1, review=0.7), revision=5)


def test_the_switch_is_followed_while_a_model_loads(
    settings: Settings, models: LiveModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = registry(settings, 1, arm(1))

    def slow(settings: Settings, arm: Arm, revision: int, release: Release, *_: Any) -> Champion:
        off = Switch(settings.model_name, 0.0, 0.0, 0.0, "id")
        found.switches[settings.model_name] = Switched(off, 5)
        wait_until("the switch is obeyed meanwhile", lambda: models.switch.bypass.revision == 5)
        return Champion(cast(Any, Model(arm.version)), arm, revision, release.manifest_sha256, 0.0)

    monkeypatch.setattr(live, "load_champion", slow)
    models._keep_up(reader(found))
    assert models.champion is not None


def test_a_switch_that_is_refused_degrades_a_worker_whose_model_serves_until_it_is_off(
    settings: Settings, models: LiveModel
) -> None:
    found, name = registry(settings, 1, arm(1)), settings.model_name
    found.switches[name] = Switched(Switch(name, 0.02, 0.02, 0.0, "id"), 5)
    models._keep_up(reader(found))
    assert models.champion is not None
    assert "Nobody goes past the model here: bypass.secret_file is not set" in models.degraded
    assert models._telemetry.registry.get_sample_value("ecluse_model_degraded") == 1.0
    found.switches[name] = Switched(Switch(name, 0.0, 0.0, 0.0, "id"), 6)
    models._keep_up(reader(found))
    assert models.degraded == ""
    assert models._telemetry.registry.get_sample_value("ecluse_model_degraded") == 0.0


def refuse_to_load(*args: Any, **kwargs: Any) -> Callable[[], None]:
    raise AssertionError("nothing is loaded")


def test_the_memory_of_a_large_model_is_given_back_when_nobody_holds_it_any_more(
    settings: Settings, models: LiveModel, loader: Loader, monkeypatch: pytest.MonkeyPatch
) -> None:
    given: list[bool] = []
    monkeypatch.setattr(live, "give_back", lambda: given.append(True))
    held: list[Champion] = []
    models.hand_over_to(lambda champion: held.__setitem__(slice(None), [champion]))
    models._keep_up(reader(registry(settings, 1, arm(1))))
    scores = held[0]
    models._keep_up(reader(registry(settings, 2, arm(2))))
    models._clear_up()
    assert given == []
    del scores
    models._clear_up()
    models._clear_up()
    assert given == [True]
