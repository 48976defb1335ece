"""One run: from a request to an artefact in the store that nobody knows of yet.

training set as of the request -> the script and the study in a child process -> version, signature, store
"""

import datetime as dt
import logging
import re
import shutil
import tempfile
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeVar

from ecluse.contract.loop import RetrainRequest
from ecluse.contract.records import Release
from ecluse.errors import DataError, ModelRefused, ProcessFailed, cause
from ecluse.model.registry import read_registry
from ecluse.settings import Settings
from retrain import process
from retrain.limits import Limits, free_memory
from retrain.manifests import SetManifest, path_of
from retrain.publish import require_key, store_draft
from retrain.runlog import RunLog
from retrain.study.report import STUDY, Study
from retrain.trainingset import Progress, build

log = logging.getLogger(__name__)

T = TypeVar("T")
#: Opens what shows a person how much is done, and of how much.
Bar = Callable[[], AbstractContextManager[Callable[[int, int | None], None]]]

SET, LOG = "set.parquet", "run.log"
#: What a request must be called for a folder of its own.
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
#: A process may set aside more memory than it uses, for threads' stacks and the like; more than this is what grows too fast to
#: be seen.
_DATA = 2
_TELL_SECONDS = 15.0


class Bounds(Protocol):
    """What a run asks of the trainer. Each call ends it by an exception where it must not go on."""

    def check(self) -> None:
        """Make sure that the request is still ours."""
        ...

    def patiently(self, call: Callable[..., T], *args: Any) -> T:
        """Call, and again for as long as it meets trouble that passes."""
        ...


@dataclass(frozen=True)
class Made:
    """What a run made: the release, not yet written, of a version that is in the store."""

    release: Release
    rows: int
    picked: str | None


def folder_of(settings: Settings, request: RetrainRequest) -> Path:
    """Where a run keeps what it makes.

    Raises:
        DataError: the request's id is no name for a folder.
    """
    if not _ID.fullmatch(request.id):
        raise DataError(f"The request's id {request.id!r:.99} is no name for a folder: letters, digits, '.', '_', '-'.")
    return settings.trainer.runs / request.id


def log_of(settings: Settings, request: RetrainRequest) -> str:
    """The path of the run's log; empty where its id is no name for a folder, and nothing is written."""
    return str(settings.trainer.runs / request.id / LOG) if _ID.fullmatch(request.id) else ""


def make(settings: Settings, request: RetrainRequest, folder: Path, bounds: Bounds, bar: Bar) -> Made:
    """Train what a request asks for, and store it.

    Args:
        settings: the stream's.
        request: what is asked for.
        folder: of the run; what an earlier try left there is replaced.
        bounds: the trainer's.
        bar: opens what shows how far the set has come.

    Raises:
        DataError, StoreError: there is nothing to train on, or it cannot be read.
        ModelError: the script fails, what it returns cannot be served, or the model store cannot be used.
        ProcessFailed: the training ended, or took more than it may.
        SettingsError: it cannot be signed.
    """
    require_key(settings)
    _clear(folder)
    with RunLog(folder / LOG) as kept:

        def say(text: str) -> None:
            log.info("%s: %s", request.id, text)
            kept.line(f"{dt.datetime.now(dt.UTC):%H:%M:%S} {text}")

        try:
            return _made(settings, request, folder, bounds, say, bar, kept)
        except BaseException as error:
            kept.line(f"{dt.datetime.now(dt.UTC):%H:%M:%S} ended: {cause(error)}")
            raise


def _made(
    settings: Settings,
    request: RetrainRequest,
    folder: Path,
    bounds: Bounds,
    say: Callable[[str], None],
    bar: Bar,
    kept: RunLog,
) -> Made:
    built = _set(settings, request, folder, bounds, say, bar)
    with tempfile.TemporaryDirectory(dir=folder, prefix="draft-") as name:
        draft = Path(name)
        limits, hidden = _limits(settings), settings.store
        say(
            f"Training for {limits.seconds / 60:g} minutes at most, in {limits.memory_bytes / 2**20:,.0f} MiB of memory"
        )
        job = process.Train(
            process.for_child(settings),
            name,
            str(folder / SET),
            study=True,
            data_bytes=_DATA * limits.memory_bytes,
            private=tuple(name.lower() for name in (*hidden.drop, *hidden.hash, *hidden.mask)),
        )
        try:
            process.run(job, say, process.Guard(limits, kept, bounds.check))
            _require_script(study := Study.read(draft / STUDY))
        except ModelRefused as error:
            if "MemoryError" not in str(error):
                raise
            raise ProcessFailed(f"{error} It {limits.memory_told}.") from error
        finally:
            if (draft / STUDY).is_file():
                shutil.copy(draft / STUDY, folder / STUDY)
        bounds.check()
        say(f"Publishing {study.picked}")
        above = bounds.patiently(read_registry, settings).newest(settings.model_name)
        manifest, release = store_draft(settings, draft, above, _lineage(request, built))
    return Made(release, int(manifest.training["rows"]), study.picked)


def _set(
    settings: Settings, request: RetrainRequest, folder: Path, bounds: Bounds, say: Callable[[str], None], bar: Bar
) -> SetManifest:
    """The training set as of the request."""
    cutoff = request.cutoff
    if settings.stream.clock == "arrival":
        cutoff = min(cutoff, time.time())  # whose clock is ahead of ours means now
    try:
        as_of = dt.datetime.fromtimestamp(cutoff, dt.UTC)
    except (ValueError, OverflowError, OSError) as error:
        raise DataError(
            f"The request's cut-off {request.cutoff:g} is no time: seconds since 1970 were expected."
        ) from error
    days = settings.trainer.history_days
    since = None if days is None else as_of - dt.timedelta(days=days)
    say(f"Building the training set as of {as_of:%Y-%m-%d %H:%M:%S} UTC")
    with bar() as progress:
        built = bounds.patiently(build, settings, as_of, since, folder / SET, _looked(bounds, say, progress))
    say(f"The set has {built.counts.rows:,} rows, {built.counts.positives:,} of them positive")
    if unseen := built.counts.unreachable:
        say(
            f"No row speaks for {unseen:,} blocked events: the model learns nothing of their like, and is not measured on it"
        )
    return built


def _clear(folder: Path) -> None:
    """An empty folder in the place of what an earlier try left.

    Raises:
        DataError: it cannot be made.
    """
    try:
        if folder.is_symlink() or folder.is_file():
            raise DataError(f"{folder} is no folder.")
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise DataError(f"The folder {folder} of the run cannot be made: {error.strerror}.") from error


def _limits(settings: Settings) -> Limits:
    wanted = settings.trainer.memory_limit_mb
    return Limits(settings.trainer.time_limit_minutes * 60, free_memory() if wanted is None else wanted * 2**20)


def _looked(bounds: Bounds, say: Callable[[str], None], progress: Callable[[int, int | None], None]) -> Progress:
    """Progress that is shown, is told now and then, and ends where the request is no longer ours."""
    told = time.monotonic()

    def look(done: int, total: int) -> None:
        nonlocal told
        bounds.check()
        progress(done, total)
        if time.monotonic() - told > _TELL_SECONDS:
            told = time.monotonic()
            say(f"{done:,} of {total:,} events are looked at")

    return look


def _require_script(study: Study) -> None:
    """A study goes on without a candidate that fails. Without the one that must not fail there is nothing to publish.

    Raises:
        ModelRefused: it failed.
    """
    for candidate in study.candidates:
        if candidate.name == study.required and candidate.average_precision is None:
            raise ModelRefused(f"{candidate.reason} Nothing was published.")


def _lineage(request: RetrainRequest, built: SetManifest) -> dict[str, Any]:
    """Where a model comes from, for its manifest."""
    return {
        "request": {
            "id": request.id,
            "asker": request.asker.value,
            "reason": request.reason,
            "cutoff": request.cutoff,
        },
        "set": {"sha256": built.sha256, "manifest": path_of(built)},
    }
