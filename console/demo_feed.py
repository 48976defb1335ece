"""What flows in the demonstration: rows, among them events of another make, labels, and what a person does about the model."""

import datetime as dt
import time
from pathlib import Path

import polars as pl

from console.demo_data import Scene, guests
from console.demo_labels import BackOffice
from console.demo_watch import Watch
from console.stage import Child, Stage
from ecluse import kafka
from ecluse.errors import ProcessFailed
from ecluse.settings import Settings

#: However many events there are, they come in about this time, beside what the parts wait for.
_STREAM_SECONDS = 20.0
_LEAST_RATE = 100.0
#: Deadlines: of training, of a worker's change of model, of the store, of a request, and of the stream without any progress.
TRAIN_SECONDS = 300.0
_CHANGE_SECONDS, _STORE_SECONDS, _ASK_SECONDS, _STILL_SECONDS = 60.0, 60.0, 60.0, 60.0
_REASON = "to learn from what has come since"


class Feed:
    """Publishes the parts of the scene one after the other, and does what a back office and a person would.

    The second part comes when the first and its labels are stored: so whenever the monitor asks, all is there that was known by
    then, however slow the machine is. The last comes when the second version serves.
    """

    def __init__(self, stage: Stage, scene: Scene, settings: Settings, office: BackOffice) -> None:
        self._stage, self._scene, self._settings, self._office = stage, scene, settings, office
        self._guests, self._sent = list(guests(settings, scene.samples)), 0
        self._producer = kafka.producer(settings)
        #: How many events there will be, how many come from a plain producer, and how many of those are broken.
        self.events = scene.events + len(self._guests)
        self.plain, self.broken = len(self._guests), sum(guest.broken for guest in self._guests)
        self._parts: list[Child] = []
        self._rows = 0
        self._asking: Child | None = None
        self._verifying: Child | None = None
        self._promoting: Child | None = None
        self._awaited, self._since = "", time.monotonic()

    def go_on(self, watch: Watch) -> None:
        """Do what is due after the watch's last look.

        Raises:
            ProcessFailed: a process failed, or something took longer than its deadline.
        """
        self._send_guests(watch.pictures[-1].published)
        self._office.send()
        if self._is_due(watch):
            self._publish(self._scene.parts[len(self._parts)])
        self._ask_and_promote(watch)
        self._stage.require_done(*self._parts, *filter(None, (self._asking, self._verifying, self._promoting)))
        self._require_progress(watch)

    def _is_due(self, watch: Watch) -> bool:
        """Whether the next part is to come."""
        if len(self._parts) in (0, len(self._scene.parts)):
            return not self._parts
        if not self._parts[-1].ended:
            return False
        return self._is_stored(watch) if len(self._parts) == 1 else watch.pictures[-1].changed

    def _is_scored(self, watch: Watch) -> bool:
        """Whether all that has come by now is scored, and its labels are told."""
        over = bool(self._parts) and self._parts[-1].ended
        return over and watch.outputs >= self._rows + self._sent

    def _is_stored(self, watch: Watch) -> bool:
        """Whether the store holds all that has come by now."""
        return self._is_scored(watch) and watch.pictures[-1].stored.total() >= watch.records + self._office.told

    def _publish(self, part: Path) -> None:
        rate = max(_LEAST_RATE, self._scene.events / _STREAM_SECONDS)
        self._rows += pl.scan_parquet(part).select(pl.len()).collect().item()
        self._parts.append(self._stage.start(f"publish {part.name}", "publish", str(part), "--rate", str(rate)))

    def _ask_and_promote(self, watch: Watch) -> None:
        """What a person does: ask for a new version where nobody else has, look at what comes, and promote it."""
        loop = watch.loop
        if loop.version is not None:
            version = str(loop.version)
            if self._verifying is None:
                self._verifying = self._stage.start("verify", "model", "verify", version, "--json")
            elif self._promoting is None and self._verifying.process.poll() == 0:
                loop.take_verified(self._verifying.out.read_text(encoding="utf-8"))
                self._promoting = self._stage.start("promote", "model", "promote", version)
        elif loop.failed and (self._scene.drifts or self._asking is not None):
            raise ProcessFailed(f"The training that was asked for has failed: {loop.run.reason if loop.run else ''}")
        elif self._asking is None and self._person_is_due(watch):
            as_of = dt.datetime.fromtimestamp(int(watch.last_event) + 1, dt.UTC)
            self._asking = self._stage.start(
                "ask", "retrain", "request", "--reason", _REASON, "--as-of", f"{as_of:%Y-%m-%dT%H:%M:%SZ}"
            )

    def _person_is_due(self, watch: Watch) -> bool:
        """Of data that are not known to change, a person asks when the monitor has not, or too early to come to anything."""
        nobody = watch.loop.request is None or watch.loop.failed
        return not self._scene.drifts and len(self._parts) == 2 and nobody and self._is_stored(watch)

    def _send_guests(self, published: int) -> None:
        """Evenly among the others, and the rest when those have all come."""
        over = len(self._parts) == len(self._scene.parts) and self._parts[-1].ended
        due = self.plain if over else published * self.plain // self.events
        for guest in self._guests[self._sent : due]:
            self._producer.produce(self._settings.names.events, guest.value, headers=list(guest.headers))
        self._producer.flush(kafka.PATIENCE)
        self._sent = max(self._sent, due)

    def _require_progress(self, watch: Watch) -> None:
        """Let nothing be awaited for ever."""
        version = watch.loop.version
        sentences = {
            "stream": (
                _STILL_SECONDS,
                f"Nothing has moved, with {self.events - watch.pictures[-1].done:,} events to go",
            ),
            "store": (_STORE_SECONDS, "The store does not hold what was scored"),
            "request": (_ASK_SECONDS, "Nobody has asked for a new version"),
            "training": (TRAIN_SECONDS, "The training that was asked for has not ended"),
            "promotion": (_CHANGE_SECONDS, f"Version {version} is released, and not champion"),
            "change": (_CHANGE_SECONDS, f"{' and '.join(sorted(watch.behind))} did not change to version {version}"),
        }
        awaited = self._awaits(watch)
        if awaited != self._awaited:
            self._awaited, self._since = awaited, time.monotonic()
        seconds, sentence = sentences[awaited]
        waited = watch.still if awaited == "stream" else time.monotonic() - self._since
        if waited > seconds:
            self._stage.fail(f"{sentence} after {seconds:.0f} s.")

    def _awaits(self, watch: Watch) -> str:
        """What comes next, if all goes well."""
        loop = watch.loop
        if watch.pictures[-1].changed:
            return "stream"
        if watch.announced is not None:
            return "change"
        if loop.version is not None:
            return "promotion"
        if loop.request is not None and not loop.failed:
            return "training"
        if not self._is_scored(watch):
            return "stream"
        return "request" if len(self._parts) == 2 and self._is_stored(watch) else "store"
