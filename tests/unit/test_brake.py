"""Which partitions are paused, over a consumer that only remembers."""

from typing import Any, cast

from confluent_kafka import TopicPartition
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from ecluse.transport.brake import STALL_SECONDS, Brake
from ecluse.transport.ledger import Ledger

PARTITIONS = [TP("events", number) for number in range(4)]
partitions = st.sets(st.sampled_from(PARTITIONS), min_size=1)


class Consumer:
    def __init__(self) -> None:
        self.paused: set[TP] = set()

    def pause(self, places: list[TopicPartition]) -> None:
        self.paused |= {TP(place.topic, place.partition) for place in places}

    def resume(self, places: list[TopicPartition]) -> None:
        self.paused -= {TP(place.topic, place.partition) for place in places}


@given(steps=st.lists(st.tuples(st.sampled_from(["assign", "revoke", "admit"]), partitions, st.integers(0, 9))))
def test_a_partition_is_read_from_when_its_own_assignment_is_admitted(steps: list[tuple[str, set[TP], int]]) -> None:
    consumer, brake = Consumer(), Brake()
    ledgers: dict[TP, Ledger] = {}
    admissions: list[Any] = []
    waits: dict[TP, int] = {}
    for step, chosen, which in steps:
        if step == "assign" and (fresh := chosen - ledgers.keys()):
            ledgers |= {partition: Ledger(partition) for partition in fresh}
            waits |= dict.fromkeys(fresh, len(admissions))
            admissions.append(brake.hold(cast(Any, consumer), fresh))
        elif step == "revoke":
            for partition in chosen & ledgers.keys():
                del ledgers[partition]
                waits.pop(partition, None)
                brake.forget(partition)
                consumer.paused.discard(partition)
        elif step == "admit" and admissions:
            admitted = which % len(admissions)
            admissions[admitted]()
            waits = {partition: number for partition, number in waits.items() if number != admitted}
        brake.apply(cast(Any, consumer), ledgers, 0.0, may_fetch=True)
        assert consumer.paused == set(waits)


def test_all_are_paused_while_the_loop_stands_still_and_those_held_stay_so_after() -> None:
    consumer, brake = Consumer(), Brake()
    ledgers = {partition: Ledger(partition) for partition in PARTITIONS}
    admit = brake.hold(cast(Any, consumer), PARTITIONS[:1])
    assert not brake.apply(cast(Any, consumer), ledgers, 0.0, may_fetch=False)
    brake.apply(cast(Any, consumer), ledgers, STALL_SECONDS + 0.1, may_fetch=False)
    assert consumer.paused == set(PARTITIONS)
    assert brake.apply(cast(Any, consumer), ledgers, STALL_SECONDS + 0.2, may_fetch=True)
    assert consumer.paused == {PARTITIONS[0]}
    admit()
    assert brake.apply(cast(Any, consumer), ledgers, STALL_SECONDS + 0.3, may_fetch=True)
    assert consumer.paused == set()
