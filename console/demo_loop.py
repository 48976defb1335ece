"""What the demonstration sees of the loop: profiles, the monitor's reports, the request, and what the trainer makes of it."""

import re
import time
from pathlib import Path
from typing import Any

import msgspec
from confluent_kafka import Message

from console.drift_words import subject
from console.reading import clock_time, printable
from ecluse.contract.codecs import Reader
from ecluse.contract.loop import Asker, DriftReport, Level, RetrainRequest, Run, RunState, Statistic
from ecluse.contract.records import Decision
from ecluse.model.registry import Registry
from ecluse.settings import Settings
from retrain.manifests import SetManifest
from retrain.study.report import STUDY, Study

#: A line of a run's log that the trainer wrote itself.
_LOGGED = re.compile(r"^\d\d:\d\d:\d\d (.+)$", re.MULTILINE)
#: The account of a run's training set, in the folder of the run.
_SET = "set.json"
_SHOWN_NUMBERS = 3


class _WindowCounts(msgspec.Struct, gc=False):
    """The fields of a `WindowCounts` that are decoded."""

    arms: dict[str, dict[Decision, int]] = {}
    rejected: int = 0


class _Profile(msgspec.Struct, gc=False):
    """The fields of a `Profile` that are decoded."""

    windows: list[_WindowCounts]


class Loop:
    """What has come of the loop so far. `told` is what there is to say of it: times, in seconds since 1970, and sentences."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._profile, self._report, self._request = Reader(_Profile), Reader(DriftReport), Reader(RetrainRequest)
        self._logged = 0
        self.told: list[tuple[float, str]] = []
        #: Events that were decided, and that became dead letters, by the profiles.
        self.counted = self.rejected = 0
        self.report: DriftReport | None = None
        #: How many asked for a new version, and the request that the demonstration goes by: the first that does not fail.
        self.requests = 0
        self.request: RetrainRequest | None = None
        #: Its run, the study behind that, and which version was champion when its own was published.
        self.run: Run | None = None
        self.study: Study | None = None
        self.champion: int | None = None
        #: What `ecluse model verify` said of the version.
        self.verified: dict[str, Any] | None = None
        #: The trainer's last word, and what the set came to that it trains on.
        self.doing = ""
        self.set: SetManifest | None = None

    @property
    def version(self) -> int | None:
        """What the request led to."""
        return self.run.version if self.run else None

    @property
    def failed(self) -> bool:
        """Whether the request led to nothing."""
        return self.run is not None and self.run.state is RunState.FAILED

    def take_profile(self, message: Message) -> None:
        """Count what a worker has counted."""
        for window in self._profile(message.value() or b"").windows:
            self.counted += sum(sum(decisions.values()) for decisions in window.arms.values())
            self.rejected += window.rejected

    def take_report(self, message: Message) -> None:
        """Tell of a report that says something new; other records of the topic are the monitor's own."""
        if not (message.key() or b"").startswith(b"report/"):
            return
        before, self.report = self.report, self._report(message.value() or b"")
        if before is None or before.level is not self.report.level:
            self._tell(f"`ecluse monitor`: {report_line(self.report)}")

    def take_request(self, message: Message) -> None:
        """Tell who asks for a new version, and why."""
        request = self._request(message.value() or b"")
        self.requests += 1
        if self.request is None or self.failed:
            self.request = request
            self.run, self.study, self.set, self.doing, self._logged = None, None, None, "", 0
        who = {Asker.DRIFT: "`ecluse monitor` asks", Asker.PERSON: "a person asks"}.get(request.asker, "it is time")
        self._tell(f"{who} for a new version, as of {clock_time(request.cutoff)[:16]} ({request.id}): {request.reason}")

    def take_registry(self, registry: Registry) -> None:
        """Tell what the trainer has come to."""
        request, before = self.request, self.run
        if request is None or (run := registry.runs.get((request.model, request.id))) is None:
            return
        self.run, folder = run, self._settings.trainer.runs / request.id
        self._take_log(Path(run.log))
        if self.set is None and (made := folder / _SET).is_file():
            self.set = SetManifest.read(made)
        if run.state is RunState.FAILED and before != run:
            self._tell(f"`ecluse trainer`: failed: {run.reason}")
        if run.state is not RunState.PUBLISHED or before == run:
            return
        routed = registry.routes.get(request.model)
        self.champion = routed.route.champion.version if routed else None
        self.study = Study.read(folder / STUDY)
        for line in study_lines(self.study):
            self._tell(f"    {line}")
        self._tell(f"version {run.version} is released: a challenger; version {self.champion} scores on")

    def take_verified(self, said: str) -> None:
        """Tell what a person saw of the version."""
        self.verified = msgspec.json.decode(said)
        self._tell(f"`ecluse model verify {self.version}`: as it was released and signed")

    def _take_log(self, log: Path) -> None:
        if not log.is_file():
            return
        lines = _LOGGED.findall(log.read_text(encoding="utf-8", errors="replace"))
        for line in lines[self._logged :]:
            self.doing = printable(line, 200)
            self._tell(f"`ecluse trainer`: {self.doing}")
        self._logged = max(self._logged, len(lines))

    def _tell(self, sentence: str) -> None:
        self.told.append((time.time(), sentence))


def report_line(report: DriftReport) -> str:
    """A report in a line: how bad, of what time, and the numbers to blame."""
    since, until = (clock_time(moment)[:10] for moment in (report.since, report.until))
    shown = [each for each in report.statistics if each.level is not Level.OK][:_SHOWN_NUMBERS]
    numbers = ", ".join(map(_number, shown)) or "nothing to blame"
    return f"{report.level.value.upper()}  version {report.version}, {since} to {until}, {report.events:,} events: {numbers}"


def study_lines(study: Study) -> list[str]:
    """The candidates of a study, a line each, and why one of them was picked."""
    lines = []
    for each in study.candidates:
        quality = each.average_precision
        worth = each.reason if quality is None else f"average precision {quality.value:.2f}"
        if quality is not None:
            worth += f" ({quality.low:.2f} to {quality.high:.2f})"
        lines.append(
            f"{each.name:<14} {size_text(each.size_bytes):>8}  {worth}{'  picked' * (each.name == study.picked)}"
        )
    return [*lines, study.why]


def size_text(size: int | None) -> str:
    """Bytes for people."""
    return "" if size is None else f"{size / 1000:,.0f} kB"


def _number(each: Statistic) -> str:
    of = subject(each.name, each.input)
    return f"{each.name}{f' of {printable(of, 40)}' if of else ''} {each.value:.2g}"
