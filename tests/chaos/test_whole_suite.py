"""What the cases show together."""

import pytest

from tests.chaos.conftest import RESULTS


@pytest.mark.whole_suite
def test_a_million_events_went_through_and_none_is_missing(request: pytest.FixtureRequest) -> None:
    results = request.config.stash[RESULTS]
    assert sum(result.events for result in results) >= 1_000_000
    assert sum(result.missing for result in results) == 0
    assert sum(result.doubled for result in results if "[at_least_once]" not in result.name) == 0
