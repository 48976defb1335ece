"""What a study prints."""

from collections.abc import Mapping, Sequence

import psutil
from rich.console import Console
from rich.table import Table


def show(title: str, columns: Mapping[str, Sequence[str]]) -> None:
    """A table on stdout, with the machine's load beside it: other work lengthens everything."""
    load = ", ".join(f"{value:.1f}" for value in psutil.getloadavg())
    table = Table()
    for number, name in enumerate(columns):
        table.add_column(name, justify="right" if number else "left")
    for row in zip(*columns.values(), strict=True):
        table.add_row(*row)
    out = Console(width=120)
    out.print(f"\n{title}", highlight=False)
    out.print(table)
    out.print(f"load average {load}", highlight=False)
