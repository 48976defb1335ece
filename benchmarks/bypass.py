"""What the bypass costs: a worker on the same backlog with the switch off and at a share, in turn."""

from collections.abc import Callable
from statistics import median

from rich.console import Console
from rich.table import Table

from benchmarks.ground import Ground
from benchmarks.measure import EXACTLY_ONCE, Run, backlog
from benchmarks.report import Figures
from console.bypass import switch_of
from ecluse.model.registry import read_registry
from ecluse.model.routes import set_switch

SHARES = (0.0, 0.02)
#: The clock stops before the backlog is worked off: see `benchmarks.__main__`.
MEASURED = 0.95

Rounds = dict[float, list[Run]]


def bypass(there: Ground, events: int, rounds: int, say: Callable[[str], None]) -> Rounds:
    """Each share in turn; every second round begins with the other."""
    runs: Rounds = {share: [] for share in SHARES}
    for number in range(rounds):
        for share in SHARES if number % 2 == 0 else reversed(SHARES):
            _set(there, share)
            run = backlog(there, EXACTLY_ONCE, events, int(MEASURED * events))
            runs[share].append(run)
            say(f"round {number + 1}, share {share:g}: {run.rate:,.0f} events/s, {run.cpu_us:.1f} µs CPU")
    return runs


def _set(there: Ground, share: float) -> None:
    settings = there.settings
    now = read_registry(settings).switches.get(settings.model_name)
    set_switch(settings, switch_of(settings, share), now.revision if now else None)


def ratios(runs: Rounds) -> tuple[float, float]:
    """Events a second, and CPU an event, at the share over those without: medians of the rounds' ratios."""
    off, on = (runs[share] for share in SHARES)
    pairs = list(zip(on, off, strict=True))
    return median(one.rate / other.rate for one, other in pairs), median(
        one.cpu_us / other.cpu_us for one, other in pairs
    )


def figures(runs: Rounds) -> Figures:
    """Every figure under a column's name."""
    row: Figures = {"share": SHARES[1], "rounds": len(runs[SHARES[0]])}
    for name, share in zip(("off", "on"), SHARES, strict=True):
        row[f"{name}_events_per_s"] = round(median(run.rate for run in runs[share]))
        row[f"{name}_cpu_us_per_event"] = round(median(run.cpu_us for run in runs[share]), 2)
    rate, cpu = ratios(runs)
    return row | {"rate_ratio": round(rate, 3), "cpu_ratio": round(cpu, 3)}


def show(runs: Rounds) -> None:
    """Print the table and the ratios."""
    table = Table(title="The bypass: a worker, exactly once, on a backlog; medians of the rounds")
    for column in ("share", "events/s", "lowest-highest", "CPU µs/event"):
        table.add_column(column, justify="right")
    for share, each in runs.items():
        rates = [run.rate for run in each]
        cpu = median(run.cpu_us for run in each)
        table.add_row(f"{share:.0%}", f"{median(rates):,.0f}", f"{min(rates):,.0f}-{max(rates):,.0f}", f"{cpu:.1f}")
    out = Console(width=110)
    out.print(table)
    rate, cpu = ratios(runs)
    out.print(
        f"At {SHARES[1]:.0%}: {rate:.2f} of the events a second, {cpu:.2f} of the CPU an event, of those without."
    )
