"""The champion changes two hundred times under load, while workers join, leave and are killed."""

import pytest

from tests.chaos.case import Case
from tests.swaps import (
    Swapper,
    predictions_by_place,
    release_versions,
    require_no_way_back,
    require_own_scores,
    serving,
)
from tests.workers import wait_until

SWAPS = 200

pytestmark = pytest.mark.timeout(600)


@pytest.mark.chaos(seconds=120, also=["kip848"])
def test_the_champion_changes_two_hundred_times(case: Case) -> None:
    arms = release_versions(case.settings, case.folder, 3)
    members = case.begin(2)
    swapper = Swapper(case.settings, arms, SWAPS)
    swapper.start()
    for share in (1, 2, 3):
        wait_until("more swaps", lambda share=share: len(swapper.versions) > share * SWAPS // 4, 120)
        if share == 1:
            members.append(case.fleet.start("slot-2"))
        elif share == 2:
            case.kill_in_transaction(members.pop(0))
        else:
            assert members.pop(0).stop() == 0
            members.append(case.fleet.start("slot-3"))
    swapper.finish(180)
    serving(list(members), max(swapper.versions))
    case.finish()
    found = predictions_by_place(case.settings)
    require_no_way_back(found, swapper.versions)
    assert case.load is not None
    values = case.load.values
    require_own_scores(case.settings, values, lambda event: int(event.removeprefix("e-")) % len(values), found)
    seen = {prediction.route_revision for made in found.values() for prediction in made}
    assert len(seen) > SWAPS // 2, f"only {len(seen)} of {SWAPS} routes scored anything"
