"""What the demonstration comes to: the count of all, the training set, and whether it showed what it is to show."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from console.audit import AuditReport
from console.audit_store import StoreReport
from console.demo_loop import Loop
from console.demo_view import alert_line, change_line
from console.demo_watch import Watch
from console.output import out, print_json, print_table
from ecluse.contract.loop import Asker
from retrain.estimates import Estimate
from retrain.manifests import SetManifest

_COLUMNS = ("events", "predictions", "dead_letters", "missing", "doubled")
_SHOWN_ALERTS, _LINE_WIDTH = 5, 120


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that was counted. `made` is the training set of what flowed."""

    topics: AuditReport
    tables: StoreReport
    made: SetManifest
    watch: Watch

    @property
    def holds(self) -> bool:
        """Whether nothing is missing or doubled, on the topics, in the tables and in the profiles."""
        topics, tables = self.topics, self.tables
        sound = not (topics.missing or topics.waiting or topics.doubled or tables.total("waiting"))
        return sound and tables.holds and self.watch.loop.counted == topics.predictions

    def print_figures(self, seconds: float) -> None:
        """One JSON object; it took so many seconds."""
        watch, made = self.watch, self.made
        stored = {row.table: 0 for row in self.tables.partitions}
        for row in self.tables.partitions:
            stored[row.table] += row.rows
        print_json(
            {name: getattr(self.topics, name) for name in _COLUMNS}
            | {"alerts": watch.alerts, "alerts_with_reasons": watch.explained}
            | {"by_version": watch.versions, "verdict": self.topics.verdict}
            | {"bypassed": watch.bypassed, "stored": stored, "store_verdict": self.tables.verdict}
            | {
                "set": {
                    "as_of": made.recipe.as_of,
                    "counts": made.counts,
                    "unspoken_share": made.unspoken_share,
                    "rates": made.rates,
                }
            }
            | loop_figures(watch.loop)
            | {"seconds": round(seconds, 1)}
        )

    def print(self, seconds: float, *, live: bool) -> None:
        """For a person; where it was not `live`, with the newest alerts, which the picture shows."""
        topics, watch, wrap = self.topics, self.watch, not out.is_terminal
        rows: list[list[object]] = [
            [row.partition, *(getattr(row, name) for name in _COLUMNS)] for row in topics.partitions
        ]
        rows.append(["all", *(getattr(topics, name) for name in _COLUMNS)])
        print_table(["partition", *(name.replace("_", " ") for name in _COLUMNS)], rows)
        good, bad = "bold green", "bold red"
        out.print(topics.verdict, style=bad if topics.missing or topics.doubled else good, soft_wrap=wrap)
        out.print(self.tables.verdict, style=good if self.tables.holds else bad, soft_wrap=wrap)
        counted = watch.loop.counted == topics.predictions
        out.print(profiles_line(watch.loop, topics.predictions), style=good if counted else bad, soft_wrap=wrap)
        for line in loop_lines(watch.loop):
            out.print(line, markup=False, soft_wrap=wrap)
        out.print(change_line(watch), soft_wrap=wrap)
        for line in set_lines(self.made):
            out.print(line, markup=False, soft_wrap=wrap)
        out.print(f"{watch.alerts:,} alerts, {watch.explained:,} of them with reasons. All of it took {seconds:.0f} s.")
        if not live:
            for alert in list(watch.newest)[-_SHOWN_ALERTS:]:
                out.print(alert_line(alert, _LINE_WIDTH), soft_wrap=True)
            out.print(f"last dead letter: {watch.last_dead_letter}", markup=False, soft_wrap=True)
        out.print("\nNothing is left running. A stream of your own begins with:")
        out.print("  ecluse broker start\n  ecluse init FILE", markup=False)


def profiles_line(loop: Loop, predictions: int) -> str:
    """Whether the workers' profiles count what they scored."""
    same = (
        "as many as there are predictions"
        if loop.counted == predictions
        else f"but there are {predictions:,} predictions"
    )
    return f"The workers' profiles count {loop.counted:,} events, {same}."


def loop_lines(loop: Loop) -> Iterator[str]:
    """What the new version comes from."""
    if loop.request is None or loop.study is None:
        return
    asked = loop.request
    yield (
        asked.reason
        if asked.asker is Asker.DRIFT
        else f"A {asked.asker.value} asked for a new version: {asked.reason}."
    )
    study, version = loop.study, loop.version
    yield (
        f"So version {version} was trained on {study.trained_rows:,} rows of what flowed: {study.picked}, one of "
        f"{len(study.candidates)} candidates."
    )


def loop_figures(loop: Loop) -> dict[str, Any]:
    """The loop's part of the JSON object."""
    return {
        "profiled": loop.counted,
        "requests": loop.requests,
        "request": loop.request,
        "run": loop.run,
        "champion_when_released": loop.champion,
        "verified": loop.verified,
        "study": loop.study,
    }


def set_lines(made: SetManifest) -> Iterator[str]:
    """What a training set holds, what it tells of the model's blocks, and what it does not speak for."""
    counts, recipe = made.counts, made.recipe
    yield (
        f"The training set of what flowed: {counts.rows:,} rows, {counts.positives:,} positive; {counts.bypassed:,} went past "
        f"the model. As of {recipe.as_of:%Y-%m-%d}, {recipe.maturity_hours / 24:g} days after the last event."
    )
    yield _rate_line(made.rates["false_discovery_rate"])
    if counts.unreachable:
        yield (
            f"It does not speak for {made.unspoken_share:.2%} of the events: {counts.unreachable:,} of the {counts.blocked:,} "
            "blocked ones could not have gone past."
        )
    elif counts.blocked:
        yield (
            f"It speaks for all events: each of the {counts.blocked:,} blocked ones could have gone past, and what did weighs "
            "as much as what it stands for."
        )
    else:
        yield "It speaks for all events: none was blocked."


def _rate_line(rate: Estimate) -> str:
    """How often a block is wrong, as far as what went past can tell."""
    if rate.value is None:
        return "How many of the model's blocks are wrong is unknown: of what went past, it would have blocked nothing."
    between = "" if rate.low is None or rate.high is None else f" (95% interval {rate.low:.0%} to {rate.high:.0%})"
    return (
        f"Of what the model blocks, {rate.value:.0%} is legitimate{between}, by the {rate.rows:,} events that it would have "
        "blocked and that went past it. More of them narrow it."
    )
