"""A study, in the child process: train every candidate, measure each on the later slice, pick one, and draft that.

read -> candidates -> each: train, convert, compare, measure -> resamples -> the rule -> study.json, the draft of the picked
"""

import shutil
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import msgspec
import numpy as np

from ecluse.errors import ModelRefused
from ecluse.model.manifest import JOBLIB, ONNX
from ecluse.settings import Settings
from retrain.fitting import Fitted, Ground, draft, fit, prepare
from retrain.process import Train
from retrain.script import Script, load_script, run_script
from retrain.study.bootstrap import Ranking, resampled
from retrain.study.candidates import candidates_of
from retrain.study.report import STUDY, Candidate, Cost, Study
from retrain.study.rule import Choice, Loss, Quality, choose
from retrain.study.timing import cost_of

#: With fewer positive units behind them, intervals are not to be relied on.
_FEW_UNITS = 20
_TOO_LARGE = "larger than study.max_size_bytes"


@dataclass(frozen=True)
class Tried:
    """What became of a candidate: without `fitted` it failed, with a `reason` it cannot be picked. `files` is the folder of its
    files."""

    name: str
    script: Script
    reason: str = ""
    fitted: Fitted | None = None
    files: Path | None = None
    size_bytes: int = 0
    cost: Cost | None = None


def study(settings: Settings, job: Train, say: Callable[[str], None]) -> None:
    """Study the candidates, and write `study.json` and the draft of the one that is picked.

    Raises:
        DataError: the file cannot be read.
        ModelRefused: there is nothing to learn from, or no candidate can be picked; then there is `study.json` alone.
    """
    script = load_script(settings.model.script)
    ground = prepare(settings, job, say)
    candidates = candidates_of(script, ground.features)
    with tempfile.TemporaryDirectory(prefix="ecluse-study-") as folder:
        tried = []
        for number, (name, each) in enumerate(candidates.items(), 1):
            say(f"Candidate {number} of {len(candidates)}, {name}: training on {len(ground.training):,} rows")
            tried.append(_try(settings, ground, name, each, Path(folder) / str(number)))
        say(f"Comparing on {settings.study.bootstrap:,} resamples of {len(ground.later):,} held-out rows")
        done, chosen = _judge(settings, job, ground, script, tried)
        done = msgspec.structs.replace(
            done, required=next((each.name for each in tried if each.script is script), None)
        )
        (Path(job.draft) / STUDY).write_bytes(done.encode())
        if chosen is None or chosen.fitted is None or chosen.files is None:
            raise ModelRefused(f"{done.why} Nothing was published.")
        say(f"Picked {chosen.name}")
        for file in chosen.files.iterdir():
            shutil.move(file, Path(job.draft) / file.name)
        draft(settings, job, ground, chosen.script, chosen.fitted, {}, study=done.summary)


def _try(settings: Settings, ground: Ground, name: str, script: Script, folder: Path) -> Tried:
    """Train and measure a candidate; what fails is told, and ends nothing."""
    try:
        fitted = fit(settings, ground, run_script(script, ground.frame, ground.names, settings.trainer.seed))
    except ModelRefused as error:
        return Tried(name, script, str(error).removesuffix(" Nothing was published."))
    except MemoryError:
        return Tried(name, script, "The memory does not suffice.")
    folder.mkdir()
    for file, data in fitted.compiled.files.items():
        (folder / file).write_bytes(data)
    served = folder / ONNX if (folder / ONNX).exists() else folder / JOBLIB
    fitted = replace(fitted, compiled=replace(fitted.compiled, files={}))  # they may be large, and are on disk
    tried = Tried(name, script, "", fitted, folder, served.stat().st_size)
    if settings.study.max_size_bytes is not None and served.stat().st_size > settings.study.max_size_bytes:
        return replace(tried, reason=f"{_TOO_LARGE} ({settings.study.max_size_bytes:,})")
    try:
        return replace(tried, cost=cost_of(folder, ground.later_matrix))
    except ModelRefused as error:
        return replace(tried, reason=str(error))


def _judge(
    settings: Settings, job: Train, ground: Ground, script: Script, tried: Sequence[Tried]
) -> tuple[Study, Tried | None]:
    """Apply the rule, and tell what it rests on."""
    wanted, later = settings.study, ground.later
    measured = [each for each in tried if each.fitted is not None]
    qualities = _qualities(ground, measured, wanted.bootstrap, settings.trainer.seed)
    choice = choose(qualities, wanted.tolerance, wanted.max_size_bytes)
    losses = choice.losses if choice else (None,) * len(measured)
    by_name = {each.name: found for each, *found in zip(measured, qualities, losses, strict=True)}
    units = later.entities if later.entities is not None else np.arange(len(later))
    positive_units = len(np.unique(units[later.labels == 1]))
    notes = [*ground.training.notes]
    if positive_units < _FEW_UNITS:
        what = "rows" if later.entities is None else "entities"
        notes.append(f"Only {positive_units:,} {what} are positive: the intervals are not to be relied on.")
    done = Study(
        model=settings.model_name,
        picked=measured[choice.picked].name if choice else None,
        best=measured[choice.best].name if choice else None,
        why=_why(tried, measured, choice, wanted.tolerance),
        tolerance=wanted.tolerance,
        max_size_bytes=wanted.max_size_bytes,
        candidates=tuple(_candidate(each, *by_name.get(each.name, (None, None))) for each in tried),
        resamples=wanted.bootstrap,
        seed=settings.trainer.seed,
        drawn="row" if later.entities is None else "entity",
        units=len(np.unique(units)),
        rows=len(later),
        positives=int(later.labels.sum()),
        held_out_span=later.span,
        trained_rows=len(ground.training),
        script=script.name,
        script_sha256=script.sha256,
        file=Path(job.file).name,
        notes=tuple(notes),
    )
    return done, measured[choice.picked] if choice else None


def _qualities(ground: Ground, measured: Sequence[Tried], count: int, seed: int) -> list[Quality]:
    later = ground.later
    fitted = [each.fitted for each in measured if each.fitted is not None]
    rankings = [Ranking(each.compiled.scores, later.labels) for each in fitted]
    values = resampled(rankings, later.weights, later.entities, count, seed)
    return [
        Quality(each.size_bytes, ranking.average_precision(later.weights), found, servable=not each.reason)
        for each, ranking, found in zip(measured, rankings, values, strict=True)
    ]


def _candidate(tried: Tried, quality: Quality | None, loss: Loss | None) -> Candidate:
    if tried.fitted is None or quality is None:
        return Candidate(name=tried.name, reason=tried.reason)
    metrics = tried.fitted.metrics
    return Candidate(
        name=tried.name,
        reason=tried.reason,
        size_bytes=tried.size_bytes,
        average_precision=quality.interval,
        loss=loss,
        precision=metrics["precision_at_review"],
        recall=metrics["recall_at_review"],
        alert_share=metrics["alert_share"],
        thresholds=tried.fitted.thresholds,
        cost=tried.cost,
    )


def _why(tried: Sequence[Tried], measured: Sequence[Tried], choice: Choice | None, tolerance: float) -> str:
    """The choice in a sentence or two."""
    if choice is None:
        reasons = " ".join(f"{each.name}: {each.reason.rstrip('.')}." for each in tried)
        return f"No candidate of the study can be picked. {reasons}"
    picked, best = measured[choice.picked], measured[choice.best]
    if picked is best and all(each.size_bytes >= best.size_bytes for each in measured if not each.reason):
        said = f"{best.name} has the highest average precision, and is the smallest."
    elif picked is best:
        said = f"{best.name} has the highest average precision, and none that is smaller is surely within {tolerance:g} of it."
    else:
        said = (
            f"{picked.name} is the smallest that loses, with 95% confidence, no more than {tolerance:g} of average precision "
            f"against {best.name}, the best: {choice.losses[choice.picked].upper:.4f} at most."
        )
    beyond = [
        (loss.value, each)
        for each, loss in zip(measured, choice.losses, strict=True)
        if each.reason.startswith(_TOO_LARGE) and loss.value < 0
    ]
    if beyond:
        loss, larger = min(beyond, key=lambda pair: pair[0])
        said += f" {larger.name} would have had {-loss:.4f} more than {best.name}, but is {_TOO_LARGE}."
    return said
