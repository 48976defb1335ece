"""The history of a route: a stack of former champions that forgets the oldest."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from ecluse.contract.records import Arm, Route, Thresholds
from ecluse.errors import ModelNotFound
from ecluse.model.registry import Routed
from ecluse.model.routes import REMEMBERED, promoted, rolled_back
from tests.unit.records import arms

CHAMPIONS = st.builds(
    Arm, st.just("champion"), st.integers(1, 4), st.sampled_from([Thresholds(0.5, 0.9), Thresholds(0.6, 0.8)])
)


class RouteMachine(RuleBasedStateMachine):
    """Promotions and rollbacks in any order, beside a list that says what they must come to."""

    def __init__(self) -> None:
        super().__init__()
        self.routed: Routed | None = None
        self.champions: list[Arm] = []

    def _write(self, route: Route) -> None:
        self.routed = Routed(route, self.routed.revision + 1 if self.routed else 0)

    @rule(champion=CHAMPIONS)
    def promote(self, champion: Arm) -> None:
        self._write(promoted("cards", self.routed, champion))
        if self.champions[-1:] != [champion]:
            self.champions.append(champion)
        del self.champions[: -REMEMBERED - 1]

    @rule()
    def roll_back(self) -> None:
        if len(self.champions) < 2:
            with pytest.raises(ModelNotFound, match="model cards remembers no earlier champion"):
                rolled_back("cards", self.routed)
        else:
            self._write(rolled_back("cards", self.routed))
            self.champions.pop()

    @invariant()
    def the_route_is_the_stack(self) -> None:
        if self.routed is None:
            assert self.champions == []
        else:
            route = self.routed.route
            assert [route.champion, *route.history] == self.champions[::-1]
            assert len(route.history) <= REMEMBERED


TestRouteMachine = RouteMachine.TestCase


@given(st.lists(arms, min_size=1, max_size=3).map(tuple), st.lists(arms, max_size=2).map(tuple), CHAMPIONS)
def test_a_change_of_champion_leaves_challengers_and_shadows_as_they_are(
    before: tuple[Arm, ...], shadows: tuple[Arm, ...], champion: Arm
) -> None:
    routed = Routed(Route("cards", before, 0.0, shadows), 7)
    after = promoted("cards", routed, champion)
    assert (after.champion, after.arms[1:], after.shadows) == (champion, before[1:], shadows)
    if before[0] != champion:
        back = rolled_back("cards", Routed(after, 8))
        assert (back.arms, back.shadows, back.history) == (before, shadows, ())
