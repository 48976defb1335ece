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
from console.demo_watch import Watch
from console.reading import clock_time, printable
from ecluse.contract.records import Alert, Decision

_LEVELS = " ▁▂▃▄▅▆▇█"
_SPARKS = 16
_NAME_WIDTH = 10
_ENTITY_WIDTH = 8
#: Lines of the live view that are not alerts, and the least and most that are.
_FIXED_LINES, _LEAST_ALERTS, _MOST_ALERTS = 11, 3, 12
_LINE_SECONDS = 2.0
_DECISION_STYLES = {Decision.ALLOW: "green", Decision.REVIEW: "yellow", Decision.BLOCK: "bold red"}


class Steps:
    """Says what is being done, and ticks it off."""

    def __init__(self, console: Console, live: bool) -> None:
        self._console = console
        self._live = live

    def title(self, text: str) -> None:
        """The first line."""
        self._console.print(Text.assemble(("Écluse", "bold cyan"), f"  {text}"), soft_wrap=True)

    def note(self, text: str) -> None:
        """A line beside the steps."""
        self._console.print(Text(f"  {text}", style="dim"), soft_wrap=not self._live)

    @contextmanager
    def step(self, name: str, doing: str) -> Iterator[Callable[[str], None]]:
        """A step under way; what it came to is said through the function that this gives."""
        said: list[str] = []
        began = time.monotonic()
        busy = self._console.status(Text(f"{name:<{_NAME_WIDTH}}{doing}")) if self._live else nullcontext()
        with busy:
            yield said.append
        self._tick(name, " ".join(said), time.monotonic() - began)

    def _tick(self, name: str, said: str, seconds: float) -> None:
        tick, title, took = Text("✓", style="green"), Text(name, style="bold"), Text(f"{seconds:.1f} s", style="dim")
        if not self._live:
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
        self._began = time.monotonic()
        self._said = self._began
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
        elif last or time.monotonic() - self._said >= _LINE_SECONDS:
            self._said = time.monotonic()
            self._console.print(self.line(), soft_wrap=True)

    def line(self) -> str:
        """The stream in a line."""
        watch, last = self._watch, self._watch.pictures[-1]
        rate_in, rate_out = watch.rates()
        return (
            f"{time.monotonic() - self._began:5.1f} s  in {last.published:,} ({rate_in:,.0f}/s)  "
            f"out {last.done:,} ({rate_out:,.0f}/s)  lag {sum(last.lag):,}  "
            f"alerts {watch.alerts:,}  dead letters {watch.dead_letters:,}"
        )

    def _picture(self) -> RenderableType:
        room = min(max(_LEAST_ALERTS, self._console.height - _FIXED_LINES), _MOST_ALERTS)
        # As many lines as there is room for from the start, so that nothing moves.
        alerts = list(self._watch.newest)[: -room - 1 : -1]
        return Group(
            Rule(style="dim"),
            self._flow(),
            self._decisions(),
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
            held = " ".join(map(str, worker.partitions)) or "none yet"
            table.add_row(
                worker.name, f"{worker.decisions.total():,}", "scored", Text.assemble(("partitions ", "dim"), held)
            )
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
        dead = self._watch.dead_letters
        parts.append(Text(f"dead letters {dead:,}", style="magenta" if dead else "dim"))
        return Text.assemble((f"{'decisions':<14}", "bold"), Text("   ").join(parts), no_wrap=True, overflow="ellipsis")


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
