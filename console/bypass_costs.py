"""What goes past the model, by day: how many events, of how many entities, which amounts, and what is left of the budget."""

import datetime as dt
import time
from array import array
from contextlib import closing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from console.output import progress_bar
from console.reading import batches, reader, spans
from ecluse.contract.arms import DAY_SECONDS, day_of

if TYPE_CHECKING:
    from ecluse.contract.records import Switch
    from ecluse.settings import Settings

_QUANTILES = (0.5, 0.9, 0.99)


@dataclass(frozen=True)
class Day:
    """One day (UTC, on the stream's clock) of what went past.

    `eligible` is about how many events might have gone past, by the odds of those that did. Amounts are None where the switch
    names no field for them; `over` is what was spent beyond the budget.
    """

    day: str
    events: int
    entities: int
    eligible: int
    amount: float | None = None
    median: float | None = None
    p90: float | None = None
    p99: float | None = None
    largest: float | None = None
    over: float | None = None


@dataclass
class _Sum:
    amounts: "array[float]" = field(default_factory=lambda: array("d"))
    entities: set[int] = field(default_factory=set)
    eligible: float = 0.0


def costs(settings: "Settings", switch: "Switch | None", days: int) -> list[Day]:
    """The last days that the bypass topic holds, today's first; today on the event clock is the last day that there is.

    Raises:
        BrokerUnreachable: no broker answered in time.
        TopicsWrong: there is no bypass topic.
    """
    from scoring.spending import spent_reader

    topic, amount_field = settings.names.bypass, switch.amount_field if switch else settings.bypass.amount_field
    decode = spent_reader(settings.stream, amount_field)
    by_event = settings.stream.clock == "event"
    first = day_of(time.time()) - days + 1
    sums: dict[int, _Sum] = {}
    with closing(reader(settings)) as consumer, progress_bar("reading the bypass") as advance:
        held = spans(settings, consumer, topic, None if by_event else first * DAY_SECONDS)
        done, total = 0, sum(end - start for start, end in held.values())
        for batch in batches(settings, consumer, topic, held):
            for message in batch:
                if (spent := decode(message)) is not None:
                    day = sums.setdefault(day_of(spent.at), _Sum())
                    day.amounts.append(spent.amount)
                    day.entities.add(hash(spent.entity))
                    day.eligible += 1 / spent.propensity if spent.propensity else 0.0
            done += len(batch)
            advance(done, total)
    newest = sorted(sums, reverse=True)[:days]
    return [_day(day, sums[day], switch, named=amount_field is not None) for day in newest]


def _day(day: int, found: _Sum, switch: "Switch | None", *, named: bool) -> Day:
    import numpy as np

    date = (dt.date(1970, 1, 1) + dt.timedelta(days=day)).isoformat()
    events, entities, eligible = len(found.amounts), len(found.entities), round(found.eligible)
    if not named:
        return Day(date, events, entities, eligible)
    amount = sum(found.amounts)
    median, p90, p99 = np.quantile(found.amounts, _QUANTILES).tolist()
    budget = switch.budget if switch else None
    over = None if budget is None else max(0.0, amount - budget)
    return Day(date, events, entities, eligible, amount, median, p90, p99, max(found.amounts), over)
