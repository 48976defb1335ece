"""The controller of the bypass' budget on a real broker: what it counts, and what two of them do at once."""

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from threading import Barrier

import msgspec
import pytest

from ecluse import kafka
from ecluse.contract.arms import DAY_SECONDS, day_of
from ecluse.contract.records import BypassSample, Source, Switch
from ecluse.model.registry import Switched, read_registry
from ecluse.model.routes import set_switch
from ecluse.settings import Settings
from scoring.budget import Budget, SampleReader
from scoring.switch import LiveSwitch
from tests.workers import read_all, wait_until

BUDGET = 100.0


def write_samples(settings: Settings, samples: Iterator[tuple[float, float]] | list[tuple[float, float]]) -> None:
    """Samples of amounts at moments (seconds since 1970), on the clock of arrival."""
    writer = kafka.producer(settings)
    for i, (at, amount) in enumerate(samples):
        source = Source(settings.names.events, i % 4, i)
        sample = BypassSample(f"e-{i}", f"c-{i}", 0.0, 0.5, 1, 2, source, {"amount": amount})
        value = msgspec.msgpack.encode(sample)
        writer.produce(settings.names.bypass, value, key=b"c", partition=i % 4, timestamp=int(at * 1e3))
    assert writer.flush(10) == 0


def switch_on(settings: Settings, share: float = 0.5) -> Switched:
    switch = Switch(settings.model_name, share, 0.5, time.time(), "id", amount_field="amount", budget=BUDGET)
    return Switched(switch, set_switch(settings, switch, None))


def test_on_the_clock_of_arrival_the_day_is_read_from_its_start_and_on(stream: Settings) -> None:
    now = time.time()
    today = day_of(now)
    begun = float(today * DAY_SECONDS)
    write_samples(stream, [(begun - 3600.0, 7.0), (begun - 0.001, 50.0), (begun, 1.0), (begun + 0.5, 20.0)] * 4)
    with closing(SampleReader(stream, "amount", today)) as reader:
        assert reader.read(30.0)
        assert reader.spending.amount == 4 * 21.0
        write_samples(stream, [(now, 5.0)])
        assert reader.read(30.0), "it goes on where it was"
        assert reader.spending.amount == 4 * 21.0 + 5.0
    with closing(SampleReader(stream, "amount", today + 1)) as reader:
        assert reader.read(30.0)
        assert reader.spending.amount == 0.0


def test_two_controllers_at_once_lower_the_share_once_and_one_that_may_not_does_nothing(stream: Settings) -> None:
    before = switch_on(stream)
    write_samples(stream, [(time.time(), BUDGET / 4)] * 8)
    together = Barrier(3)

    def look(*, holds: bool) -> None:
        live = LiveSwitch(stream)
        live.keep_up(read_registry(stream))
        budget = Budget(stream, live, lambda: holds, list)
        together.wait(30)
        budget._look(30.0)
        budget._let_go()

    with ThreadPoolExecutor(3) as pool:
        for done in [pool.submit(look, holds=holds) for holds in (True, True, False)]:
            done.result(60)
    now = read_registry(stream).switches[stream.model_name]
    assert (now.switch.share, now.switch.wanted) == (0.0, 0.5)
    written = [m.offset() for m in read_all(stream, stream.names.models) if b"switch" in (m.key() or b"")]
    assert written == [before.revision, now.revision], "one of them was told that the switch is another by now"


def test_a_day_begins_as_wanted_where_the_switch_was_lowered_the_day_before(stream: Settings) -> None:
    lowered = switch_on(stream, share=0.0)
    yesterday = msgspec.structs.replace(lowered.switch, created_at=time.time() - DAY_SECONDS)
    set_switch(stream, yesterday, lowered.revision)
    live = LiveSwitch(stream)
    live.keep_up(read_registry(stream))
    settings = stream.model_copy(update={"bypass": stream.bypass.model_copy(update={"control_seconds": 0.1})})
    with Budget(settings, live, lambda: True, list) as budget:
        wait_until("it is restored", lambda: read_registry(stream).switches[stream.model_name].switch.share == 0.5)
    assert not budget.is_alive()


@pytest.mark.parametrize("times", [[], [1.0, 2.0, 5e9]])
def test_on_the_clock_of_events_the_middle_one_tells_the_time_and_none_tells_none(
    stream: Settings, times: list[float]
) -> None:
    settings = stream.model_copy(update={"stream": stream.stream.model_copy(update={"clock": "event"})})
    budget = Budget(settings, LiveSwitch(settings), lambda: True, lambda: times)
    assert budget._now() == (2.0 if times else None)
