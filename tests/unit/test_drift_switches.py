"""Each of the generator's changes, as the monitor sees it: noticed in so many windows, with the right inputs named first."""

from functools import cache

import pytest

from ecluse.loop_sections import MonitorSettings, Rising
from ingest.generator import DriftKind
from tests.study.drifting import Watched, watched
from tests.study.watching_drift import RIGHT, episodes, noticed, reports, with_recall

SEED, CUSTOMERS = 4711, 1_500
#: Above what chance gives so few customers; docs/drift-figures.md has the figures of 5,000.
SETTINGS = MonitorSettings(psi=Rising(warn=0.04, alarm=0.06))
#: After how many windows of a day, at most. Labels of new fraud take nine days, and those of a span seven more.
WITHIN = {DriftKind.INPUT_NULL: 1, DriftKind.AMOUNTS_UP: 6, DriftKind.RAMP_UP: 13, DriftKind.NEW_FRAUD: 22}


@cache
def streams() -> dict[DriftKind | None, Watched]:
    return {stream.kind: stream for stream in watched(SEED, CUSTOMERS)}


@pytest.mark.parametrize("kind", DriftKind)
def test_a_change_is_noticed_within_its_windows_and_its_inputs_are_named_first(kind: DriftKind) -> None:
    found = noticed(reports(with_recall(SETTINGS, streams()[kind]), streams()[kind]))
    assert found.before == 0
    assert found.windows is not None
    assert found.windows <= WITHIN[kind]
    if RIGHT[kind]:
        assert found.inputs[0] in RIGHT[kind]
    else:
        assert found.name == "recall"


def test_steady_days_with_their_days_and_weeks_open_no_episode() -> None:
    stream = streams()[None]
    assert episodes(reports(SETTINGS, stream)) == 0
