"""`ecluse monitor calibrate`: thresholds that keep to a number of false alarms, from a steady past."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import (
    ConfigOption,
    JsonOption,
    ServersOption,
    out,
    print_json,
    print_table,
    progress_bar,
    say,
    settings_of,
)
from console.reading import clock_time

if TYPE_CHECKING:
    from ecluse.settings import Settings
    from retrain.drift.calibrate import Calibration, Rate
    from retrain.drift.past import Past
    from scoring.champion import Champion


def calibrate(
    file: Annotated[Path, typer.Argument(help="A steady past: .csv, .jsonl, .ndjson or .parquet.", show_default=False)],
    days: Annotated[int, typer.Option(min=1, help="At most one false alarm in so many days.")] = 30,
    model: Annotated[
        int | None, typer.Option(min=1, help="A released version; the champion where not given.", show_default=False)
    ] = None,
    resamples: Annotated[int, typer.Option(min=50, max=5_000, help="How many orders of its weeks are judged.")] = 200,
    seed: Annotated[int, typer.Option(min=0, help="Of the draw of these orders.")] = 20180401,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Propose thresholds with which all inputs and statistics together alarm falsely at most once in a number of days.

    The past is one in which nothing changed, and three times as long; the events that the model was made from are left out.
    Each value is held to at 95% confidence. Changes nothing: put the lines into ecluse.toml and start the monitor again.
    """
    from retrain.drift.calibrate import calibrate as propose
    from retrain.drift.windows import Reference

    settings = settings_of(config, servers)
    past, champion, notes = _counted(settings, file, model)
    with progress_bar("judging other orders of its weeks") as tell:
        found = propose(
            settings.monitor,
            Reference.of(champion.model.manifest),
            past,
            days,
            resamples=resamples,
            seed=seed,
            tell=tell,
        )
    span = [past.windows[0].window, past.windows[-1].window + past.window_seconds]
    if as_json:
        limits = {name: each.model_dump() for name, each in found.limits.items()}
        named = {"model": champion.name, "version": champion.version, "events": past.rows, "since": span[0]}
        settled = dataclasses.asdict(dataclasses.replace(found, limits={})) | {"limits": limits}
        print_json(named | {"until": span[1]} | settled | {"notes": [*notes, *_doubts(found)]})
        return
    out.print(
        f"{champion.name} version {champion.version} on {past.rows:,} events from {clock_time(span[0])} to "
        f"{clock_time(span[1])}: {found.windows} windows, {found.resamples} other orders of its weeks, seed {found.seed}.\n",
        markup=False,
        soft_wrap=True,
    )
    _print(found)
    for note in [*notes, *_doubts(found)]:
        say(f"note: {note}")


def _counted(settings: "Settings", file: Path, version: int | None) -> tuple["Past", "Champion", list[str]]:
    """The windows that the version has not seen, the version, and what of the file they leave out."""
    from ingest import Replay
    from retrain.drift.past import count_past, seen_until
    from scoring.batch import model_to_score_with

    replay = Replay(settings, file)
    with progress_bar("fetching the model") as tell:
        champion = model_to_score_with(settings, version, tell)
    with progress_bar("scoring and counting") as tell:
        whole = count_past(
            settings,
            champion.model,
            champion.arm.thresholds,
            replay.batches(),
            lambda done: tell(done, replay.total),
        )
    past = whole.after(seen_until(champion.model.manifest))
    left_out = {
        "have no time": whole.untimed,
        "lie in windows that the file holds in part": whole.cut,
        f"lie in windows that version {champion.version} has seen rows of": whole.rows - past.rows,
    }
    return past, champion, [f"{rows:,} rows {why}: left out." for why, rows in left_out.items() if rows]


def _print(found: "Calibration") -> None:
    limits = [f"{name} = {{ warn = {each.warn:g}, alarm = {each.alarm:g} }}" for name, each in found.limits.items()]
    lines = ["[monitor]", *limits, f"change_confidence = {found.change_confidence:g}", ""]
    out.print("\n".join(lines), markup=False, soft_wrap=True)
    out.print(
        f"All inputs and statistics together, in {found.days} days: {_rate(found.rate)}.\n"
        f"With the thresholds in force: {_rate(found.before)}.\n",
        markup=False,
        soft_wrap=True,
    )
    rows = []
    for name, rate in found.alone.items():
        largest = next((each for each in found.largest if each.name == name), None)
        if largest is None or largest.value <= (name == "alerts"):  # a ratio of one is no more than chance
            seen, where, when = "none", "", ""
        else:
            seen, where, when = f"{largest.value:.3g}", largest.input or "", clock_time(largest.until)
        kept = "kept" if name in found.kept else "new"
        rows.append((name, kept, f"{rate.expected:.2f}", f"{rate.bound:.2f}", seen, where, when))
    heads = ("statistic", "thresholds", "alone", "at most", "largest in this past", "of", "in the window to")
    print_table(heads, rows)


def _rate(rate: "Rate") -> str:
    return f"{rate.expected:.2f} false alarms are expected, and {rate.bound:.2f} at most (95%)"


def _doubts(found: "Calibration") -> list[str]:
    """What speaks against the past."""
    notes = [
        f"This past is not steady: {each.input or 'the scores'} in its second half has a population stability index of "
        f"{each.psi:.2g} against its first. Thresholds from it let as much pass for chance."
        for each in found.trends
    ]
    if found.before.expected * found.past_days / found.days >= 1:
        notes.append("The thresholds in force would have alarmed in this past: is it one in which nothing changed?")
    if found.before.bound <= 1:
        notes.append("The thresholds in force keep to that, too; smaller ones also see changes that hardly matter.")
    return notes
