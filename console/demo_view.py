"""How the demonstration looks: steps with a tick, a live view on a terminal, plain lines elsewhere."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.rule import Rule
from rich.table import Table
from rich.text import Text

from console.alerts import SEVERITY_STYLES, reason_text
from console.demo_loop import Loop, report_line, size_text
from console.demo_watch import SECOND, Watch
from console.reading import clock_time, printable
from ecluse.contract.loop import Level
from ecluse.contract.records import Alert, Decision
from retrain.study.report import Study

_LEVELS = " ▁▂▃▄▅▆▇█"
_SPARKS = 16
_NAME_WIDTH = 10
_ENTITY_WIDTH = 8
#: Lines of the live view that are not alerts, and the least and most that are.
_FIXED_LINES, _LEAST_ALERTS, _MOST_ALERTS = 18, 3, 12
#: How often there is a line, while things move and while nothing does.
_LINE_SECONDS, _STILL_LINE_SECONDS = 2.0, 20.0
_DECISION_STYLES = {Decision.ALLOW: "green", Decision.REVIEW: "yellow", Decision.BLOCK: "bold red"}
_LEVEL_STYLES = {Level.OK: "green", Level.WARN: "yellow", Level.ALARM: "bold red"}


class Steps:
    """Says what is being done, and ticks it off."""

    def __init__(self, console: Console, live: bool) -> None:
        self._console = console
        self.live = live

    def title(self, text: str) -> None:
        """The first line."""
        self._console.print(Text.assemble(("Écluse", "bold cyan"), f"  {text}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line beside the steps."""
        self._console.print(Text(f"  {text}", style="dim"), soft_wrap=not self.live)

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[Callable[[str], None]]:
        """A step under way; what it came to is said through the function that this gives."""
        said: list[str] = []
        began = time.monotonic()
        busy = self._console.status(Text(f"{name:<{_NAME_WIDTH}}{doing}")) if self.live else nullcontext()
        with busy:
            yield said.append
        self._tick(name, " ".join(said), time.monotonic() - began)

    def _tick(self, name: str, said: str, seconds: float) -> None:
        tick, title, took = Text("✓", style="green"), Text(name, style="bold"), Text(f"{seconds:.1f} s", style="dim")
        if not self.live:
            self._console.print(tick, f"{name:<{_NAME_WIDTH}}{said} ({took})", soft_wrap=True)
            return
        line = Table.grid(padding=(0, 1), expand=True)
        line.add_column(no_wrap=True)
        line.add_column(width=_NAME_WIDTH - 1, no_wrap=True)
        line.add_column(ratio=1, overflow="fold")
        line.add_column(justify="right", no_wrap=True)
        line.add_row(tick, title, Text(said), took)
        self._console.print(line)


class View:
    """A running stream on the console: a picture that stays in its place, or a line from time to time."""

    def __init__(self, console: Console, watch: Watch, events: int, live: bool) -> None:
        self._console = console
        self._watch = watch
        self._events = events
        self._said = time.monotonic()
        self._told: set[str] = set()
        self._live = Live(console=console, auto_refresh=False, transient=False) if live else None

    @contextmanager
    def shown(self) -> Iterator[None]:
        """The time in which the view is on the console."""
        with self._live or nullcontext():
            yield

    def update(self, *, last: bool = False) -> None:
        """Show the watch's last look; of lines, one from time to time and the last."""
        if self._live is not None:
            self._live.update(self._picture(), refresh=True)
            return
        for about, line in told_of(self._watch):
            if about not in self._told:
                self._told.add(about)
                self._console.print(line, markup=False, soft_wrap=True)
        wait = _LINE_SECONDS if self._watch.still < _LINE_SECONDS else _STILL_LINE_SECONDS
        if last or time.monotonic() - self._said >= wait:
            self._said = time.monotonic()
            self._console.print(self.line(), soft_wrap=True)

    def line(self) -> str:
        """The stream in a line."""
        watch, last = self._watch, self._watch.pictures[-1]
        rate_in, rate_out = watch.rates()
        return (
            f"{time.time() - watch.began:5.1f} s  in {last.published:,} ({rate_in:,.0f}/s)  "
            f"out {last.done:,} ({rate_out:,.0f}/s)  lag {sum(last.lag):,}  "
            f"alerts {watch.alerts:,}  dead letters {watch.dead_letters:,}  "
            f"past the model {watch.bypassed:,}  stored {last.stored.total():,}"
        )

    def _picture(self) -> RenderableType:
        room = min(max(_LEAST_ALERTS, self._console.height - _FIXED_LINES), _MOST_ALERTS)
        # As many lines as there is room for from the start, so that nothing moves.
        alerts = list(self._watch.newest)[: -room - 1 : -1]
        return Group(
            Rule(style="dim"),
            self._flow(),
            self._decisions(),
            self._model(),
            self._loop(),
            Rule("newest alerts", style="dim", align="left"),
            *(alert_line(alert, self._console.width) for alert in alerts),
            *[Text("")] * (room - len(alerts)),
            Text.assemble(
                ("last dead letter  ", "dim"),
                (self._watch.last_dead_letter or "none yet", "magenta"),
                no_wrap=True,
                overflow="ellipsis",
            ),
        )

    def _flow(self) -> Table:
        watch, last = self._watch, self._watch.pictures[-1]
        rate_in, rate_out = watch.rates()
        table = Table.grid(padding=(0, 2), expand=True)
        table.add_column(width=12, no_wrap=True, style="bold")
        table.add_column(width=8, justify="right", no_wrap=True)
        table.add_column(width=9, justify="right", no_wrap=True)
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        table.add_row("events in", f"{last.published:,}", f"{rate_in:,.0f}/s", self._bar(last.published, "cyan"))
        table.add_row("events out", f"{last.done:,}", f"{rate_out:,.0f}/s", self._bar(last.done, "green"))
        table.add_row("lag", self._lag(), "", self._water())
        for worker in last.workers:
            held = Text.assemble(("partitions ", "dim"), " ".join(map(str, worker.partitions)) or "none yet")
            if watch.announced is not None and worker.name in watch.first:
                after = watch.first[worker.name] - watch.announced
                held.append(f"   version {SECOND}, {after:.2f} s after its promotion", style="bold cyan")
            table.add_row(worker.name, f"{worker.decisions.total():,}", "scored", held)
        rows = "   ".join(f"{name} {count:,}" for name, count in last.stored.items())
        table.add_row("store", f"{last.stored.total():,}", "rows", Text(rows, style="blue"))
        return table

    def _model(self) -> Text:
        watch = self._watch
        made = "   ".join(f"version {version} {count:,}" for version, count in sorted(watch.versions.items()))
        news = Text()
        if watch.announced is not None:
            at = watch.announced - watch.began
            news = Text(f"version {SECOND} was promoted at {at:.1f} s", style="bold cyan")
        return Text.assemble((f"{'predictions':<14}", "bold"), made, "   ", news, no_wrap=True, overflow="ellipsis")

    def _loop(self) -> Table:
        """What the monitor says, who asks for a new version, what the trainer does, and what comes of it."""
        loop, request = self._watch.loop, self._watch.loop.request
        table = Table.grid(padding=(0, 1), expand=True)
        table.add_column(width=13, no_wrap=True, style="bold")
        table.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        level = loop.report.level if loop.report else Level.OK
        said = report_line(loop.report) if loop.report else "no day has closed yet"
        table.add_row("monitor", Text(said, style=_LEVEL_STYLES[level]))
        asked = "nobody has asked for a new version"
        if request is not None:
            inputs = f": {', '.join(request.inputs)}" if request.inputs else f": {request.reason}"
            asked = f"by {request.asker.value}, as of {clock_time(request.cutoff)[:10]}{inputs}"
        table.add_row("request", Text(asked, style="yellow" if request else "dim"))
        table.add_row("trainer", Text(trainer_text(loop), style="cyan" if loop.doing else "dim"))
        table.add_row("study", study_text(loop.study) if loop.study else Text("no candidates yet", style="dim"))
        table.add_row("challenger", Text(challenger_text(self._watch), style="bold cyan" if loop.version else "dim"))
        return table

    def _bar(self, done: int, style: str) -> ProgressBar:
        return ProgressBar(total=self._events, completed=done, complete_style=style, finished_style=style)

    def _lag(self) -> Text:
        lag = sum(self._watch.pictures[-1].lag)
        return Text(f"{lag:,}", style="yellow" if lag else "green")

    def _water(self) -> Text:
        """The level of the water: lag over the last seconds, and in each partition."""
        levels = [sum(picture.lag) for picture in list(self._watch.pictures)[-_SPARKS:]]
        top = max(*levels, 1)
        drawn = "".join(_LEVELS[-(-level * (len(_LEVELS) - 1) // top)] for level in levels)
        parts = " ".join(f"{lag:,}" for lag in self._watch.pictures[-1].lag)
        return Text.assemble((f"{drawn:<{_SPARKS}}", "blue"), ("  partitions ", "dim"), parts)

    def _decisions(self) -> Text:
        decisions = self._watch.pictures[-1].decisions
        parts = [
            Text(f"{name.value} {decisions[name.value]:,}", style=style) for name, style in _DECISION_STYLES.items()
        ]
        past, dead = self._watch.bypassed, self._watch.dead_letters
        parts.append(Text(f"past the model {past:,}", style="cyan" if past else "dim"))
        parts.append(Text(f"dead letters {dead:,}", style="magenta" if dead else "dim"))
        return Text.assemble((f"{'decisions':<14}", "bold"), Text("   ").join(parts), no_wrap=True, overflow="ellipsis")


def told_of(watch: Watch) -> Iterator[tuple[str, str]]:
    """What happened, in lines, and what each is about. A worker's first event may turn out to have been another."""
    for number, (at, sentence) in enumerate(watch.loop.told):
        yield f"loop {number}", f"{at - watch.began:5.1f} s  {sentence}"
    if watch.announced is None:
        return
    yield "promotion", f"{watch.announced - watch.began:5.1f} s  version {SECOND} is promoted: champion from now on"
    for worker, first in sorted(watch.first.items(), key=lambda item: item[1]):
        after = first - watch.announced
        yield (
            worker,
            f"{first - watch.began:5.1f} s  {worker} scores its first event by version {SECOND}, {after:.2f} s later",
        )


def trainer_text(loop: Loop) -> str:
    """What the trainer trains on, and what it does."""
    counts = loop.set and loop.set.counts
    rows = f"{counts.rows:,} rows, {counts.positives:,} positive; " if counts else ""
    return f"{rows}{loop.doing}" if loop.doing else "waits for a request"


def study_text(study: Study) -> Text:
    """The candidates by size and average precision; the one that is picked stands out."""
    line = Text()
    for each in study.candidates:
        quality = f"{each.average_precision.value:.2f}" if each.average_precision else "failed"
        style = "bold cyan" if each.name == study.picked else ""
        line.append(f"{each.name} {size_text(each.size_bytes)} {quality}", style=style).append("   ")
    return line


def challenger_text(watch: Watch) -> str:
    """How far the version that comes by the loop has come."""
    loop = watch.loop
    if loop.version is None:
        return f"the training has failed: {loop.run.reason}" if loop.failed and loop.run else "none yet"
    signed = ", signed" if loop.verified else ""
    if watch.announced is None:
        return f"version {loop.version}{signed}; version {loop.champion} scores on"
    return f"version {loop.version}{signed}, promoted: champion"


def change_line(watch: Watch) -> str:
    """How many predictions each version made, in a sentence."""
    made = " and ".join(f"{count:,} by version {version}" for version, count in sorted(watch.versions.items()))
    return f"The model changed in mid-stream: {made}."


def alert_line(alert: Alert, width: int) -> Text:
    """An alert in a line of `width` cells."""
    line = Text(no_wrap=True, overflow="ellipsis")
    line.append(f"{clock_time(alert.event_time)[5:16]}  ", style="dim")  # month to minute
    line.append(f"{alert.severity.value.upper():<8}", style=SEVERITY_STYLES[alert.severity])
    line.append(f"  {alert.score:.2f}  ")
    line.append(f"{printable(alert.entity, _ENTITY_WIDTH):<{_ENTITY_WIDTH}}  ", style="bold cyan")
    line.append(_whole(alert, width - line.cell_len))
    return line


def _whole(alert: Alert, width: int) -> str:
    """The reasons that fit into `width`, the first one in any case."""
    if alert.reasons == "skipped":
        return "reasons skipped: too many alerts at once"
    text = ""
    for reason in map(reason_text, alert.reasons):
        if text and len(text) + len(reason) + 2 > width:
            break
        text += f"{', ' if text else ''}{reason}"
    return text or "no single input raised it"
