"""The monitor of a stream: profiles of the topic go through the fold, and what comes of them is to be written.

It is used by one thread, but for `starts`, which the owning thread of the transport calls, and `stop`.
"""

import datetime as dt
import logging
import threading
import time
from collections.abc import Collection, Mapping

import msgspec
from faust.types import TP

from ecluse import kafka
from ecluse.contract.codecs import Reader, content_headers, encoder
from ecluse.contract.loop import DriftReport, Profile, RetrainRequest
from ecluse.contract.records import Version
from ecluse.errors import DataError, EcluseError
from ecluse.settings import Settings
from ecluse.transport.ledger import Chunk, Ledger, Output, Record
from retrain.drift.fold import Closing, Fold, Outcomes
from retrain.drift.performance import has_stored, outcomes
from retrain.drift.references import References, Stopping
from retrain.drift.state import MonitorState, restore
from retrain.drift.telemetry import MonitorHealth, MonitorTelemetry

logger = logging.getLogger(__name__)

#: Where the monitor stands is written with all that it says, and else every so many seconds of the wall's clock.
STATE_SECONDS = 300.0
#: What reading the state back may take beyond the time-out of an open transaction, in seconds.
RESTORE_SECONDS = 30.0


class Monitor:
    """Folds the chunks of the profiles topic.

    Args:
        settings: the stream's.
        telemetry: of this process.
        health: of this process.
    """

    def __init__(self, settings: Settings, telemetry: MonitorTelemetry, health: MonitorHealth) -> None:
        self._settings, self._telemetry = settings, telemetry
        self._stopping = threading.Event()

        def trouble(what: str) -> None:
            health.trouble = what

        failed = telemetry.failures.labels("manifest").inc
        self._references = References(settings, self._stopping, failed, trouble)
        self._restored: MonitorState | None = None
        self._ledger: Ledger | None = None
        self._fold = self._new_fold()
        self._read = Reader(Profile)
        self._encode = encoder(settings.stream.encoding)
        self._headers = content_headers(settings.stream.encoding)
        self._state_due = 0.0
        self._strange: tuple[str, float] | None = None

    def stop(self) -> None:
        """Have nothing be waited for any more. From any thread."""
        self._stopping.set()

    def starts(self, partitions: Collection[TP]) -> Mapping[TP, int]:
        """Where the profiles are to be read from: behind those that the newest state has come of. Called by the owning thread.

        Raises:
            KafkaException: the broker does not answer.
        """
        settings, topic = self._settings, self._settings.names.profiles
        self._restored = state = restore(settings, settings.worker.session_timeout_seconds + RESTORE_SECONDS)
        if state is None:
            logger.info("no monitor has written where it stands: all profiles are read, from the first that is held")
            return {}
        with kafka.reader(settings) as consumer:
            low, high = kafka.watermarks(consumer, topic, 0)
        start = state.profiles
        if start > high:
            logger.warning("%s ends at %d and was read to %d: it was made anew, and is read whole", topic, high, start)
            self._restored = None
            return {}
        if start < low:
            logger.warning(
                "profiles %d to %d were deleted before a monitor read them: it goes on behind", start, low - 1
            )
        return dict.fromkeys(partitions, max(low, start))

    def __call__(self, chunk: Chunk) -> list[Output]:
        """Take a chunk; what it makes of it is to be produced in the transaction that passes it.

        Raises:
            Stopping: the monitor was stopped while it waited for something.
            DataError: the state that was read back is none, or is too large to be written.
        """
        if chunk.ledger is not self._ledger:  # the partition came, or is read again after an abort
            self._begin(chunk.ledger)
        said = [output for record in chunk.records for output in self._take(record)]
        if said or time.monotonic() >= self._state_due:
            said.append(self._state())
            self._state_due = time.monotonic() + STATE_SECONDS
        self._tell()
        return said

    def _new_fold(self) -> Fold:
        return Fold(self._settings.model_name, self._settings.monitor, self._references)

    def _begin(self, ledger: Ledger) -> None:
        """Stand where the newest state stood."""
        self._ledger, self._fold, state = ledger, self._new_fold(), self._restored
        self._telemetry.reports = {}
        self._state_due = 0.0
        if state is not None:
            self._fold.restore(state.fold)
            self._telemetry.reports = {report.version: report for report in state.reports}
            self._state_due = time.monotonic() + STATE_SECONDS

    def _take(self, record: Record) -> list[Output]:
        """Take one record of the topic; one that is no profile is passed over."""
        try:
            profile = self._read(record.value() or b"")
        except msgspec.DecodeError as error:
            self._telemetry.failures.labels("profile").inc()
            logger.warning("The record at offset %d of the profiles is passed over: %s", record.offset(), error)
            return []
        self._telemetry.profiles.inc()
        self._say_if_of_another_length(profile)
        asked = self._fold.take(profile, record.timestamp()[1] / 1e3, record.offset())
        said = [] if asked is None else [self._request(asked)]
        while (closing := self._fold.due()) is not None:
            if self._stopping.is_set():
                raise Stopping
            closed = self._fold.close({version: self._outcomes(version, closing) for version in closing.versions})
            said.extend(self._report(report) for report in closed.reports)
            if closed.request is not None:
                said.append(self._request(closed.request))
        return said

    def _say_if_of_another_length(self, profile: Profile) -> None:
        seconds = self._settings.monitor.window_hours * 3600
        if profile.window_seconds != seconds and (told := (profile.worker, profile.window_seconds)) != self._strange:
            self._strange = told
            logger.warning(
                "Worker %s counts in windows of %g hours, and this monitor judges %g (monitor.window_hours): its counts are "
                "refused until it is restarted with the same configuration.",
                *(profile.worker, profile.window_seconds / 3600, seconds / 3600),
            )

    def _outcomes(self, version: Version, closing: Closing) -> Outcomes:
        """What matured by the end of the window, of as long a time as a span; nothing where that cannot be told."""
        monitor, labels = self._settings.monitor, self._settings.labels
        until = closing.until - labels.maturity_hours * 3600
        since = until - monitor.window_hours * monitor.span_windows * 3600
        try:
            if not has_stored(self._settings, closing.since, closing.until):
                self._telemetry.failures.labels("store").inc()
                logger.warning(
                    "How well version %d does is not judged for this window: the training store holds none of its predictions. "
                    "Is `ecluse store` behind?",
                    version,
                )
                return Outcomes()
            found = outcomes(self._settings, version, since, until, closing.until)
        except Exception as error:  # whatever it is, the next try would meet it too, and no window would ever close
            self._telemetry.failures.labels("store").inc()
            strange = not isinstance(error, EcluseError)
            logger.warning(
                "How well version %d does is not judged for this window: %s", version, error, exc_info=strange
            )
            return Outcomes()
        return Outcomes(found, since, until) if found else Outcomes()

    def _report(self, report: DriftReport) -> Output:
        self._telemetry.made.labels(report.level.value).inc()
        self._telemetry.reports[report.version] = report
        until = dt.datetime.fromtimestamp(report.until, dt.UTC).strftime("%Y-%m-%d %H:%M UTC")
        logger.info("version %d, up to %s, %d events: %s", report.version, until, report.events, report.level.value)
        if (left := report.late + report.ahead) > report.events:
            logger.warning(
                "That speaks of few: %d events were not judged, %d of them late, %d ahead (monitor.max_ahead_hours).",
                *(left, report.late, report.ahead),
            )
        return self._output(self._settings.names.drift, report.key, report)

    def _request(self, request: RetrainRequest) -> Output:
        self._telemetry.asked.labels(request.asker.value).inc()
        logger.warning("a new model is asked for (%s): %s", request.id, request.reason)
        return self._output(self._settings.names.retrain_requests, request.model, request)

    def _state(self) -> Output:
        state = MonitorState(
            model=self._settings.model_name,
            profiles=self._fold.next_offset,
            stream_time=self._fold.time,
            written_at=time.time(),
            fold=self._fold.dump(),
            reports=tuple(self._telemetry.reports.values()),
        )
        return self._output(self._settings.names.drift, state.key, state)

    def _output(self, topic: str, key: str, record: object) -> Output:
        value = self._encode(record)
        largest = self._settings.topics.largest_output
        if len(value) > largest - 1024:
            raise DataError(
                f"What the monitor writes of {key} takes {len(value):,} bytes, and {topic} takes {largest:,} at most: raise "
                "topics.max_message_bytes, or lower monitor.span_windows."
            )
        return Output(topic, key.encode(), value, self._headers)

    def _tell(self) -> None:
        fold, told = self._fold, self._telemetry
        told.reports = {version: report for version, report in told.reports.items() if version in fold.versions}
        told.apart, told.stream_time, told.episode = fold.apart, fold.time, fold.episode is not None
