"""The monitor's heart: profiles in, one after the other; reports and requests out. No Kafka, no wall clock, no files.

    fold.take(profile, recorded, offset)
    while (closing := fold.due()) is not None:
        closed = fold.close({version: outcomes for each version of the closing, as the store has them})

The same profiles in the same order always give the same reports and requests, wherever the state was saved and restored.
"""

import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np

from ecluse.contract.loop import Asker, DriftReport, Level, Profile, RetrainRequest, Statistic, WindowCounts
from ecluse.contract.records import Moment, Version
from ecluse.errors import DataError, cause
from ecluse.loop_sections import MonitorSettings
from retrain.drift import judge
from retrain.drift.clock import Clock
from retrain.drift.episodes import Episodes
from retrain.drift.windows import Reference, Seen, size_of, window_of

#: So many versions are followed at once; the lowest number that does not lead makes room for one more.
MAX_VERSIONS = 16
#: So many windows of a version are open at once, as where a past is read; with more, the last of them are not judged.
MAX_OPEN = 1000
#: An empty window is no gap where the one a span before it held less than this share of its span's events.
_QUIET = 1 / 50

#: The reference of a version and its manifest's digest; None where there is no such manifest, now and for ever.
References = Callable[[Version, str], Reference | None]


@dataclass(frozen=True, slots=True)
class Outcomes:
    """What the labels that have matured say of a version, and of the events of which time."""

    statistics: Sequence[Statistic] = ()
    since: Moment | None = None
    until: Moment | None = None


@dataclass(frozen=True, slots=True)
class Closing:
    """A window that is due to be closed: `until` is its end, `versions` those that have counts in it."""

    since: Moment
    until: Moment
    versions: tuple[Version, ...]


@dataclass(frozen=True, slots=True)
class Closed:
    """What is to be written of a window that has closed: a report for each version, that of the leading one first."""

    reports: tuple[DriftReport, ...]
    request: RetrainRequest | None


class Apart(msgspec.Struct, gc=False):
    """What could not be counted: events after their window had closed, ahead of what may be, or in counts that are refused
    (another window length, other bins, no manifest, a time that is none); and offsets that no profile covers."""

    late: int = 0
    ahead: int = 0
    refused: int = 0
    uncounted: int = 0


class _State(msgspec.Struct):
    window_seconds: float
    next_offset: int = 0
    clock: Clock = msgspec.field(default_factory=Clock)
    versions: dict[Version, Seen] = {}
    sizes: dict[int, int] = {}
    closed: int = -1
    episodes: Episodes = msgspec.field(default_factory=Episodes)
    apart: Apart = msgspec.field(default_factory=Apart)
    untold: Apart = msgspec.field(default_factory=Apart)


class Fold:
    """The monitor of one model.

    Args:
        model: its name; profiles of another are refused.
        settings: windows, spans and thresholds.
        reference: gives what a version is held against. Asked when a profile comes and when a window closes, so what it needs
            must have been loaded by then: see `versions`.
    """

    def __init__(self, model: str, settings: MonitorSettings, reference: References) -> None:
        self._model = model
        self._settings = settings
        self._reference = reference
        self._seconds = settings.window_hours * 3600
        self._late = settings.late_hours * 3600
        self._max_ahead = settings.max_ahead_hours * 3600
        self._state = _State(self._seconds)

    @property
    def next_offset(self) -> int:
        """The offset behind the last profile taken."""
        return self._state.next_offset

    @property
    def time(self) -> Moment | None:
        """The stream's clock; None before it has begun."""
        return self._state.clock.time

    @property
    def versions(self) -> dict[Version, str]:
        """The versions that are followed, and the digests of their manifests."""
        return {version: seen.manifest_sha256 for version, seen in self._state.versions.items()}

    @property
    def leader(self) -> Version | None:
        """The version whose alarms open episodes: that with the most events."""
        return self._state.episodes.leader

    @property
    def episode(self) -> str | None:
        """The id of the episode that is open."""
        return None if self._state.episodes.open is None else self._state.episodes.open.id

    @property
    def apart(self) -> Apart:
        """All that was not counted, since the beginning."""
        return self._state.apart

    def take(self, profile: Profile, recorded: Moment, offset: int) -> RetrainRequest | None:
        """Count one profile; then close all that is `due`. One that was taken before changes nothing.

        Args:
            profile: as it was read.
            recorded: its record's timestamp in seconds.
            offset: where it stands on its topic.

        Returns:
            The request that the schedule makes, if the stream's clock has passed a moment of it.
        """
        state = self._state
        if offset < state.next_offset:
            return None
        state.next_offset = offset + 1
        if profile.model != self._model:
            self._put_apart("refused", sum(map(size_of, profile.windows)))
            return None
        before = state.clock.time  # what a profile counts is not late because of the times that it brings
        skipped = state.clock.advance(
            profile.covers, recorded, max_ahead=self._max_ahead, max_behind=24 * 3600 + self._late
        )
        self._put_apart("uncounted", skipped)
        seen = self._seen(profile)
        for counted in profile.windows:
            self._count(seen, profile.version, counted, recorded, before)
        return self._scheduled()

    def due(self) -> Closing | None:
        """The oldest window that the stream's clock has closed and that has not been judged."""
        state = self._state
        numbers = [number for seen in state.versions.values() for number in seen.windows if number > state.closed]
        if not numbers or not self._is_over(min(numbers), self.time):
            return None
        number = min(numbers)
        versions = tuple(sorted(version for version, seen in state.versions.items() if number in seen.windows))
        return Closing(number * self._seconds, (number + 1) * self._seconds, versions)

    def close(self, outcomes: Mapping[Version, Outcomes] | None = None) -> Closed:
        """Judge the window that is due, which there must be, with what the store says of its versions."""
        closing, state = self.due(), self._state
        if closing is None:
            raise ValueError("no window is due")
        state.closed = number = round(closing.since / self._seconds)
        events = {version: state.versions[version].windows[number].events for version in closing.versions}
        state.episodes.lead(events)
        leader = state.episodes.leader
        reports, request = [], None
        for version in sorted(closing.versions, key=lambda version: (version != leader, version)):
            report = self._report(version, number, (outcomes or {}).get(version, Outcomes()))
            if version == leader and state.episodes.judge(report.statistics, closing.until, self._settings):
                request = self._request(report)
            own = state.episodes.open if version == leader else None
            untold, state.untold = state.untold, Apart()
            reports.append(
                msgspec.structs.replace(
                    report,
                    episode=own and own.id,
                    request=request.id if request is not None and version == leader else None,
                    late=untold.late,
                    ahead=untold.ahead,
                    refused=untold.refused,
                    uncounted=untold.uncounted,
                )
            )
        self._forget(number)
        return Closed(tuple(reports), request)

    def dump(self) -> bytes:
        """All that the fold knows.

        Its size, before it is compressed, is at most 16 versions times their windows (the span, one before it, and those that
        are open) times their cells times 9 bytes, and 120 values of 9 bytes for each series, of which there are two an input.
        """
        return zlib.compress(_encoder.encode(self._state), 1)

    def restore(self, data: bytes) -> None:
        """Go on where `dump` was called. Windows of another length than the settings' are given up; all else is kept.

        Raises:
            DataError: it is no such state.
        """
        try:
            state = _decoder.decode(zlib.decompress(data))
        except (msgspec.MsgspecError, zlib.error, ValueError) as error:
            raise DataError(f"The monitor's state cannot be read: {cause(error)}.") from error
        if state.window_seconds != self._seconds:
            state.window_seconds, state.versions, state.sizes, state.closed = self._seconds, {}, {}, -1
        self._state = state

    def _seen(self, profile: Profile) -> Seen | None:
        """The version that the profile counts; None where its counts cannot be used."""
        versions = self._state.versions
        if profile.window_seconds != self._seconds or self._reference(profile.version, profile.manifest_sha256) is None:
            return None
        if profile.version not in versions:
            if len(versions) >= MAX_VERSIONS:
                lost = versions.pop(min(version for version in versions if version != self.leader))
                open_windows = [window for number, window in lost.windows.items() if number > self._state.closed]
                self._put_apart("refused", sum(window.size for window in open_windows))
            versions[profile.version] = Seen(profile.manifest_sha256)
        seen = versions[profile.version]
        return seen if seen.manifest_sha256 == profile.manifest_sha256 else None

    def _count(
        self, seen: Seen | None, version: Version, counted: WindowCounts, recorded: Moment, before: Moment | None
    ) -> None:
        size = size_of(counted)
        number = self._number(counted.window)
        if seen is None or number is None:
            return self._put_apart("refused", size)
        if number * self._seconds > recorded + self._max_ahead:
            return self._put_apart("ahead", size)
        if number <= self._state.closed or self._is_over(number, before):
            return self._put_apart("late", size)
        reference = self._reference(version, seen.manifest_sha256)
        window = None if reference is None else window_of(counted, reference)
        if window is None:
            return self._put_apart("refused", size)
        if number in seen.windows:
            seen.windows[number].add(window)
            return None
        seen.windows[number] = window
        if len(still_open := [each for each in seen.windows if each > self._state.closed]) > MAX_OPEN:
            self._put_apart("ahead", seen.windows.pop(max(still_open)).size)
        return None

    def _number(self, since: Moment) -> int | None:
        """Which window begins then, if one does."""
        if not 0 <= since < 1e12:  # which no NaN is
            return None
        number = round(since / self._seconds)
        return number if abs(number * self._seconds - since) < 1e-3 else None

    def _is_over(self, number: int, time: Moment | None) -> bool:
        return time is not None and (number + 1) * self._seconds + self._late <= time

    def _put_apart(self, what: str, events: int) -> None:
        for apart in (self._state.apart, self._state.untold):
            setattr(apart, what, getattr(apart, what) + events)

    def _scheduled(self) -> RetrainRequest | None:
        if self.time is None:
            return None
        tick = self._state.episodes.tick(self.time, self._settings.schedule)
        if tick is None:
            return None
        return RetrainRequest(
            id=f"schedule-{tick:.0f}",
            model=self._model,
            asker=Asker.SCHEDULE,
            reason=f"The schedule asks for a new model {self._settings.schedule}.",
            cutoff=tick,
            created_at=self._state.clock.recorded,
        )

    def _report(self, version: Version, number: int, outcomes: Outcomes) -> DriftReport:
        """What one version is like when window `number` closes."""
        settings, seen = self._settings, self._state.versions[version]
        since = number - settings.span_windows + 1
        span, last = seen.span(since, number), seen.windows[number]
        reference = self._reference(version, seen.manifest_sha256)
        statistics = list(outcomes.statistics)
        if reference is not None and reference.width == len(last.cells):
            statistics += judge.of_window(last, reference, settings)
            statistics += judge.of_alerts(span, reference, settings)
            if self._is_full(seen, number):
                statistics += judge.of_span(span, reference, settings)
                statistics += judge.of_series(seen, span, reference, settings)
        ranked = judge.by_blame(statistics)
        return DriftReport(
            model=self._model,
            version=version,
            since=max(since, min(seen.windows)) * self._seconds,
            until=(number + 1) * self._seconds,
            events=span.events,
            level=judge.worst(ranked),
            statistics=ranked,
            matured_since=outcomes.since,
            matured_until=outcomes.until,
        )

    def _is_full(self, seen: Seen, number: int) -> bool:
        """Whether the span that ends with window `number` is whole: no window is missing in it, nor the one before, so
        that none is the one in which the version began. An hour or a day that is always quiet is not missing.
        """
        span, sizes = self._settings.span_windows, self._state.sizes
        for each in range(number - span, number + 1):
            if each not in seen.windows:
                before = sum(sizes.get(each - span - i, 0) for i in range(-(span // 2), span - span // 2))
                if sizes.get(each, 0) or not before or sizes.get(each - span, 0) >= _QUIET * before:
                    return False
        return True

    def _request(self, report: DriftReport) -> RetrainRequest:
        told = tuple(each for each in report.statistics if each.level is not Level.OK)
        return RetrainRequest(
            id=f"drift-{report.version}-{report.until:.0f}",
            model=self._model,
            asker=Asker.DRIFT,
            reason=judge.reason(self._model, report.version, told, report.since, report.until),
            cutoff=report.until,
            created_at=self._state.clock.recorded,
            version=report.version,
            inputs=judge.blamed_inputs(told),
            evidence=told,
            since=report.since,
            until=report.until,
        )

    def _forget(self, number: int) -> None:
        """Keep what the next span needs, and the sizes of the stream's windows for one span more."""
        state, span = self._state, self._settings.span_windows
        state.sizes[number] = sum(
            seen.windows[number].size for seen in state.versions.values() if number in seen.windows
        )
        state.sizes = {each: size for each, size in state.sizes.items() if each > number - 3 * span}
        for version, seen in list(state.versions.items()):
            seen.windows = {each: window for each, window in seen.windows.items() if each > number - span - 1}
            if not seen.windows:
                del state.versions[version]


def _plain(value: Any) -> Any:
    return value.tolist()


def _array(_: type, value: Any) -> Any:
    return np.array(value, dtype=np.int64)


_encoder = msgspec.msgpack.Encoder(enc_hook=_plain)
_decoder = msgspec.msgpack.Decoder(_State, dec_hook=_array)
