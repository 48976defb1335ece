"""What the commands print, and the options that they share. Results go to stdout; progress, logs and errors to stderr."""

import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, NoReturn

import msgspec
import typer
from rich import box
from rich.console import Console, JustifyMethod
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from ecluse.settings import Settings, load

#: No emoji: `user:100:5` is a key, not a picture.
out = Console(highlight=False, emoji=False)
err = Console(stderr=True, highlight=False, emoji=False)

ConfigOption = Annotated[
    Path | None,
    typer.Option("--config", "-c", help="The configuration file; ecluse.toml where not given.", show_default=False),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
ServersOption = Annotated[
    str | None,
    typer.Option("--bootstrap-servers", "-b", help="The Kafka cluster, over the setting.", show_default=False),
]


def settings_of(config: Path | None, servers: str | None = None) -> Settings:
    """The configuration, with what the command line says over it."""
    return load(config, {"kafka": {"bootstrap_servers": servers}} if servers else None)


def say(text: str) -> None:
    """A line for the person at the terminal, on stderr."""
    err.print(escape(text), soft_wrap=True)


def print_json(value: Any) -> None:
    """One JSON value on a line of its own."""
    sys.stdout.write(msgspec.json.encode(value).decode() + "\n")
    sys.stdout.flush()


#: What is no terminal has no width, but a table needs one.
_PIPE_WIDTH = 120


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str | None = None) -> None:
    """A table for people; numbers stand right, and are never cut: a table of many columns is wider than the terminal."""
    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, show_edge=False, padding=(0, 1, 0, 0))
    needed = 0
    for i, column in enumerate(columns):
        numeric = all(isinstance(row[i], int | float) for row in rows)
        width = max(map(len, column.split()))  # so that a heading breaks between words only
        if numeric:
            width = max([width, *(len(f"{row[i]:,}") for row in rows)])
        needed += width + 2
        justify: JustifyMethod = "right" if numeric and rows else "left"
        table.add_column(column, justify=justify, overflow="fold", min_width=width)
    for row in rows:
        table.add_row(*(Text(f"{cell:,}" if isinstance(cell, int | float) else str(cell)) for cell in row))
    room = out.width if out.is_terminal else max(out.width, _PIPE_WIDTH)
    Console(file=out.file, width=max(room, needed), highlight=False, emoji=False).print(table)


def fail(sentence: str) -> NoReturn:
    """Say what went wrong and exit with 1."""
    err.print(f"[bold red]error[/]: {escape(sentence)}", soft_wrap=True)
    sys.exit(1)


@contextmanager
def progress_bar(what: str) -> Iterator[Callable[[int, int | None], None]]:
    """A progress bar on stderr, where that is a terminal; it is told how much is done, and of how much (None: unknown)."""
    columns = (SpinnerColumn(), TextColumn(what), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task("", total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)
