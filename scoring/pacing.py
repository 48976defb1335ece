"""The law of the bypass' budget: which share goes past, given what the day has cost so far. Pure: it knows no clock.

The share is lowered at once where more was spent than the part of the day that is over allows, and some; then what is left is
spread over what is left of the day. It is raised with patience. Both the last hour and the day so far tell how the day goes on,
and the dearer of the two counts: a burst is seen at once, and forgotten no sooner than the day allows.
"""

from collections import defaultdict

from ecluse.contract.arms import DAY_SECONDS, day_of
from ecluse.contract.records import Switch
from scoring.spending import Spent

#: The rate of spending is taken over so many seconds, or the day so far: over less, a few events would tell too much. And so
#: much of a day's budget may be spent ahead of time: what comes by chance is not worth a revision.
WINDOW = 3600.0
_SLOT = 60.0
#: The share is lowered where so much of it, or less, is allowed, and raised where so much, or more, is.
LOWER, RAISE = 0.8, 1.25
#: How long a share lasts before it is raised, in seconds of the stream's clock. A new day waits for nothing.
PATIENCE = 900.0
#: Less of what is wanted than this part is nobody: so few would speak for so many that they told nothing.
LEAST = 0.01
#: So many days from the newest on are kept: where a past is read, partitions lie days apart.
_DAYS = 64


class Spending:
    """What went past on one day, the stream's newest, and on those after it, of which events may have come already."""

    def __init__(self, day: int) -> None:
        self.day = day
        self._sums: defaultdict[int, float] = defaultdict(float)
        #: By day and slot: what all eligible events were worth, by the odds of those that went past.
        self._slots: defaultdict[tuple[int, int], float] = defaultdict(float)

    def add(self, spent: Spent) -> None:
        """Take in one event that went past; of days gone by nothing is kept, nor of those far ahead."""
        day = day_of(spent.at)
        if self.day <= day < self.day + _DAYS and spent.propensity > 0:
            self._sums[day] += spent.amount
            self._slots[day, int(spent.at // _SLOT)] += spent.amount / spent.propensity

    def turn(self, day: int) -> None:
        """A later day is the newest now."""
        self.day = day
        for old in [each for each in self._sums if each < day]:
            del self._sums[old]
        for slot in [each for each in self._slots if each[0] < day]:
            del self._slots[slot]

    @property
    def amount(self) -> float:
        """What went past on the day."""
        return self._sums.get(self.day, 0.0)

    def rate(self, now: float) -> float:
        """What all eligible events are worth, a second: of the last hour, or of the day so far, whichever is more."""
        today = {slot: worth for (day, slot), worth in self._slots.items() if day == self.day}
        lately = sum(worth for slot, worth in today.items() if (slot + 1) * _SLOT > now - WINDOW) / WINDOW
        elapsed = max(now - self.day * DAY_SECONDS, WINDOW)
        return max(lately, sum(today.values()) / elapsed)


def allowed(switch: Switch, spending: Spending, now: float) -> float:
    """The share that the budget allows at a moment of the day, in seconds since 1970; never more than is wanted."""
    if switch.budget is None:
        return switch.wanted
    left = switch.budget - spending.amount
    rest = max((spending.day + 1) * DAY_SECONDS - now, WINDOW)
    rate = spending.rate(now)
    if left <= 0:
        return 0.0
    share = switch.wanted if rate <= 0 else min(switch.wanted, left / rest / rate)
    return share if share >= LEAST * switch.wanted else 0.0


def ahead(switch: Switch, spending: Spending, now: float) -> bool:
    """Whether more was spent than the part of the day that is over allows, and `WINDOW` more."""
    return spending.amount > (switch.budget or 0.0) * (now - spending.day * DAY_SECONDS + WINDOW) / DAY_SECONDS


def next_share(switch: Switch, spending: Spending, now: float, changed: float, *, whole: bool) -> float | None:
    """The share to set now; None where the one in force stays.

    Args:
        switch: in force.
        spending: of the day of `now`.
        now: seconds since 1970, on the stream's clock.
        changed: when the switch was set, on the same clock.
        whole: whether all that went past is known; where it is not, nothing is raised.
    """
    share = allowed(switch, spending, now)
    rounded = min(switch.wanted, float(f"{share:.3g}"))
    if share < LOWER * switch.share and (share == 0 or ahead(switch, spending, now)):
        return rounded
    waited = now - changed >= PATIENCE or spending.day > day_of(changed)
    if whole and waited and (share > RAISE * switch.share or (share == switch.wanted > switch.share)):
        return rounded
    return None
