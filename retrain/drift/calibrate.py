"""Thresholds for "at most one false alarm in N days", from a steady past. docs/drift-figures.md derives the rule.

What is counted is episodes, whichever input and statistic opens them. A past of D days in which k of them opened says, at 95%
confidence, that there are no more than ``gamma(0.95, k + 1) / D`` a day (F. Garwood, 1936, Biometrika 28:437-442). Of the past
only one order has happened; k is the mean over many others that might have, or what did happen, if that is more. One
threshold that lies right above what the past held promises as much as one that was set beforehand and that nothing reached (S.
S. Wilks, 1941, Annals of Mathematical Statistics 12:91-96). Each further one fails by itself, and counts as one episode more.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy.special import gammaincinv  # type: ignore[import-untyped]

from ecluse.contract.loop import Statistic
from ecluse.errors import DataError
from ecluse.loop_sections import MonitorSettings, Rising
from retrain.drift.past import Past
from retrain.drift.resampling import NAMES, Track, drawn, episodes, statistics_of, track_of, windows_a_block
from retrain.drift.trend import Trend, trends
from retrain.drift.windows import Reference

RESAMPLES, SEED = 200, 20180401
#: Weeks, or spans where these are longer, that a past must have at least to be drawn from.
LEAST_BLOCKS = 4
_CONFIDENCE = 0.95
#: In how few of the windows of a steady past something may warn: an episode must be able to end.
_WARNING_SHARE = 0.05
#: A past of D days in which nothing alarmed allows no more than one false alarm in D / 3 days: -log(0.05) is 3.
_DAYS_FOR_ONE = 3
#: How many times smaller the confidence of a change is made before the past counts as not steady.
_SUREST = 10_000
#: The settings' names of the statistics, where they differ.
_SETTINGS = {"range": "out_of_range"}

Progress = Callable[[int, int], None]
Thresholds = tuple[NDArray[np.float64], NDArray[np.float64]]


@dataclass(frozen=True)
class Rate:
    """False alarms in N days: as many as are expected, and their 95% upper bound."""

    expected: float
    bound: float


@dataclass(frozen=True)
class Largest:
    """The largest value of a statistic that the past itself has shown, and when its window ended."""

    name: str
    input: str | None
    value: float
    until: float


@dataclass(frozen=True)
class Calibration:
    """Proposed thresholds by the name of their setting, and what to expect of them.

    `alone` has the rate of each statistic, `before` that of the thresholds in force. `kept` are the statistics whose
    thresholds stay as they are.
    """

    days: int
    past_days: float
    windows: int
    block_windows: int
    resamples: int
    seed: int
    limits: dict[str, Rising]
    change_confidence: float
    kept: tuple[str, ...]
    rate: Rate
    before: Rate
    alone: dict[str, Rate]
    largest: tuple[Largest, ...]
    trends: list[Trend]


def calibrate(
    settings: MonitorSettings,
    reference: Reference,
    past: Past,
    days: int,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
    tell: Progress = lambda _done, _total: None,
) -> Calibration:
    """Propose thresholds with which the whole family alarms falsely at most once in so many days, at 95% confidence.

    Args:
        settings: the monitor's: windows, spans, and the thresholds in force.
        reference: what the version is held against.
        past: steady windows, none of which the version was trained on.
        days: N.
        resamples: how many orders of the past are judged.
        seed: of their draw.
        tell: told how many are done, and of how many.

    Raises:
        DataError: the past is too short for so many days or for any, or it is not steady.
    """
    block = require_long_enough(settings, past, days)
    in_force = _in_force(settings)
    rate = partial(_rate, days=days, past_days=past.days, calm_windows=settings.calm_windows, in_force=in_force)

    tracks_at = partial(_tracks, settings, reference, past, block, resamples, seed, tell)
    as_set = tracks = tracks_at(confidence := settings.change_confidence)
    while (found := _least(tracks, in_force, rate)) is None:
        _require_changes(tracks, in_force, days, past.days)
        confidence /= 10
        if confidence < settings.change_confidence / _SUREST:
            raise DataError(
                "This past is not steady: changes of level are found in it however sure they must be "
                f"(monitor.change_confidence = {confidence * 10:.0e}). Give a past in which nothing changed."
            )
        tracks = tracks_at(confidence)
    alone = {name: rate([track.alone(name) for track in tracks], found) for name in NAMES}
    return Calibration(
        days=days,
        past_days=past.days,
        windows=len(past.windows),
        block_windows=block,
        resamples=resamples,
        seed=seed,
        limits=_limits(found),
        change_confidence=confidence,
        kept=tuple(name for name, same in zip(NAMES, (found[1] == in_force[1]).tolist(), strict=True) if same)
        + (("change",) if confidence == settings.change_confidence else ()),
        rate=rate(tracks, found),
        before=rate(as_set, in_force),
        alone=alone | {"change": rate([track.alone(None) for track in tracks], found)},
        largest=_largest(statistics_of(settings, reference, past.windows)),
        trends=trends(settings, past, reference, np.random.default_rng(seed)),
    )


def _tracks(
    settings: MonitorSettings,
    reference: Reference,
    past: Past,
    block: int,
    resamples: int,
    seed: int,
    tell: Progress,
    confidence: float,
) -> list[Track]:
    """The past as it was, and in other orders, judged."""
    tried = settings.model_copy(update={"change_confidence": confidence})
    tracks, random = [track_of(statistics_of(tried, reference, past.windows))], np.random.default_rng(seed)
    for done in range(resamples):
        tracks.append(track_of(statistics_of(tried, reference, drawn(past, block, random))))
        tell(done + 1, resamples)
    return tracks


def require_long_enough(settings: MonitorSettings, past: Past, days: int) -> int:
    """How many windows a block has.

    Raises:
        DataError: the past has too few, or is too short to say anything of so many days.
    """
    block = windows_a_block(settings)
    length = past.days * 86_400 / past.window_seconds
    if length < LEAST_BLOCKS * block:
        need = LEAST_BLOCKS * block * past.window_seconds / 86_400
        raise DataError(
            f"The past has {past.days:.3g} days in whole windows; it takes {need:.3g} days to draw others from it."
        )
    if days * _DAYS_FOR_ONE > past.days:
        raise DataError(
            f"A past of {past.days:.3g} days can promise one false alarm in {past.days / _DAYS_FOR_ONE:.3g} days and no "
            f"fewer, even if nothing alarmed in it: for {days} days it takes a past of {days * _DAYS_FOR_ONE} days."
        )
    return block


def bound(episodes_seen: float) -> float:
    """The 95% upper bound of a Poisson mean of which so many were seen, or would have been on average."""
    return float(gammaincinv(episodes_seen + 1, _CONFIDENCE))


def _in_force(settings: MonitorSettings) -> Thresholds:
    limits: list[Rising] = [getattr(settings, _SETTINGS.get(name, name)) for name in NAMES]
    return np.array([each.warn for each in limits]), np.array([each.alarm for each in limits])


def _limits(thresholds: Thresholds) -> dict[str, Rising]:
    told = zip(NAMES, *(each.tolist() for each in thresholds), strict=True)
    return {_SETTINGS.get(name, name): Rising(warn=warn, alarm=alarm) for name, warn, alarm in told}


def _rate(
    tracks: Sequence[Track],
    thresholds: Thresholds,
    *,
    days: float,
    past_days: float,
    calm_windows: int,
    in_force: Thresholds,
) -> Rate:
    """Of the past as it was, which is the first track, and in its other orders: whichever is more."""
    own, *others = (episodes(track, *thresholds, calm_windows) for track in tracks)
    seen = max(float(own), float(np.mean(others)))
    further = max(int((thresholds[1] != in_force[1]).sum()) - 1, 0)
    return Rate(seen * days / past_days, bound(seen + further) * days / past_days)


def _require_changes(tracks: Sequence[Track], in_force: Thresholds, days: int, past_days: float) -> None:
    """See that it is for changes of level that no thresholds suffice.

    Raises:
        DataError: the past is too short for all the thresholds that it must set.
    """
    if any(track.changed.any() for track in tracks):
        return
    highest = _raised(np.max([track.values.max(axis=0, initial=-np.inf) for track in tracks], axis=0), in_force[1])
    taken = [name for name, same in zip(NAMES, (highest == in_force[1]).tolist(), strict=True) if not same]
    raise DataError(
        f"The thresholds of {', '.join(taken)} must all come from this past, and the more that must, the less it can promise: "
        f"one false alarm in {past_days / bound(len(taken) - 1):.3g} days. For {days} days it takes a past of "
        f"{bound(len(taken) - 1) * days:.0f} days."
    )


def _least(
    tracks: Sequence[Track], floors: Thresholds, rate: Callable[[Sequence[Track], Thresholds], Rate]
) -> Thresholds | None:
    """The lowest thresholds whose bound is one at most; None where the highest do not suffice.

    Every statistic gets the same quantile of its own largest values, so that each is equally likely to be the one that alarms
    falsely (as in P. H. Westfall, S. S. Young, 1993, "Resampling-Based Multiple Testing").
    """
    maxima = np.sort([track.values.max(axis=0, initial=-np.inf) for track in tracks], axis=0)
    warn = _warnings(np.concatenate([track.values for track in tracks]), floors)

    def at(rank: int) -> Thresholds:
        alarm = _raised(maxima[rank], floors[1])
        return np.minimum(warn, alarm), alarm

    low, high = 0, len(maxima) - 1
    if rate(tracks, at(high)).bound > 1:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if rate(tracks, at(middle)).bound <= 1 else (middle + 1, high)
    return at(high)


def _warnings(values: NDArray[np.float64], floors: Thresholds) -> NDArray[np.float64]:
    """The lowest at which something warns in few windows only."""
    levels = np.unique(np.geomspace(_WARNING_SHARE, 1e-4, 60))
    for level in levels[::-1]:
        warn = _raised(np.quantile(values, 1 - level, axis=0, method="higher"), floors[0])
        if (values >= warn).any(axis=1).mean() <= _WARNING_SHARE:
            break
    return warn


def _raised(values: NDArray[np.float64], floors: NDArray[np.float64]) -> NDArray[np.float64]:
    """Thresholds right above these values, to three digits.

    An index has no meaning of its own: it takes what the past allows. The others are the business's own numbers, and are
    raised where the past asks for it, never lowered.
    """
    above = np.array([_above(value) for value in values.tolist()])
    free = (np.array(NAMES) == "psi") & (above > 0)
    return np.where(free, above, np.maximum(above, floors))


def _above(value: float) -> float:
    if not value > 0:
        return 0.0
    unit = 10.0 ** (np.floor(np.log10(value)) - 2)
    return float(f"{(np.floor(value / unit) + 1) * unit:.3g}")


def _largest(told: Sequence[tuple[float, Sequence[Statistic]]]) -> tuple[Largest, ...]:
    """Of each statistic and input what the past has shown at most, the largest of each statistic first."""
    found: dict[tuple[str, str | None], Largest] = {}
    for until, statistics in told:
        for each in statistics:
            key = each.name, each.input
            if key not in found or each.value > found[key].value:
                found[key] = Largest(each.name, each.input, each.value, until)
    order = {name: i for i, name in enumerate((*NAMES, "change"))}
    return tuple(sorted(found.values(), key=lambda each: (order[each.name], -each.value)))
