"""Whether the profiles that workers sent count every event once."""

from itertools import pairwise

from ecluse import cluster
from ecluse.contract.loop import Counts, Profile
from ecluse.contract.records import Prediction
from ecluse.settings import Settings
from tests.workers import records


def require_counted_once(settings: Settings) -> list[Profile]:
    """Every event of the topic is counted by one committed profile, and every offset covered by one.

    The producers write without transactions, so that every offset is an event.
    """
    profiles = records(settings, settings.names.profiles, Profile)
    predicted = records(settings, settings.names.predictions, Prediction)
    ends = cluster.end_offsets(settings, settings.names.events)
    for partition, end in ends.items():
        ranges = sorted((c.start, c.end) for profile in profiles for c in profile.covers if c.partition == partition)
        assert all(before[1] == after[0] for before, after in pairwise(ranges)), f"partition {partition}: {ranges}"
        assert not end or (ranges[0][0], ranges[-1][1]) == (0, end), f"partition {partition}: {ranges} of {end}"
    windows = [window for profile in profiles for window in profile.windows]
    decided = sum(sum(decisions.values()) for window in windows for decisions in window.arms.values())
    assert (decided, decided + sum(window.rejected for window in windows)) == (len(predicted), sum(ends.values()))
    scored = sum(prediction.score is not None for prediction in predicted)
    assert sum(total(window.scores) for window in windows) == scored
    inputs = {name for window in windows for name in window.inputs}
    for name in inputs:
        assert sum(total(window.inputs.get(name, Counts())) for window in windows) == scored, name
    return profiles


def total(counts: Counts) -> int:
    """How many values were counted."""
    return sum(counts.bins.values()) + counts.missing + counts.below + counts.above
