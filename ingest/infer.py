"""What a labelled file tells about a stream: its fields, label, id, time and key, and what a model must not see.

Memory is bounded: one pass over the file for counts, and a sample of its rows for the rest.
"""

import datetime as dt
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse.contract.schema import ILLEGAL_IN_NAMES, FieldType, seconds
from ecluse.errors import DataError
from ingest.leaks import Leak, leak_by_name, leak_by_values
from ingest.look import Facts, Look, stream_name
from ingest.look import look as look_at

#: Whole numbers named like an id are a code up to that many values, and an entity's name above.
_MOST_CODES = 50
#: A text with more values than that, on more than half of the rows, is free text.
_MOST_CATEGORIES = 20
_LONG_TEXT = 60
_TRIED_TIMES = 1_000
_YEARS = (dt.datetime(1990, 1, 1, tzinfo=dt.UTC).timestamp(), dt.datetime(2100, 1, 1, tzinfo=dt.UTC).timestamp())
_INT64 = (-(2**63), 2**63 - 1)


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


_LABELS = _words(
    "label target class y fraud isfraud fraudulent churn churned default defaulted outcome response attack anomaly spam "
    "converted clicked subscribed survived bad default_payment chargeback "
    "risk truth exited attrition failure failed cancelled dropout readmitted conversion conversions"
)
_TRUE = _words("yes y true t + positive pos fraud fraudulent bad default churn churned attack anomaly spam")
_FALSE = _words("no n false f 0 0.0 -1 -1.0 - negative neg good ok legit legitimate genuine normal benign ham none")
_TIMES = _words(
    "event_time event_timestamp timestamp time datetime date_time ts occurred_at transaction_time transaction_date "
    "date created_at created"
)
_TIME_WORDS = frozenset(_words("time timestamp date datetime ts at created occurred when"))
_OTHER_TIMES = re.compile(
    r"birth|dob|expir|updated|modified|signup|opened|joined|regist|since|last|previous|first|known"
)
_ID = re.compile(r"(^|_)(id|uuid|guid|ref|reference|number|no|nr)$")
_IDS = ("event_id", "transaction_id", "id", "uuid", "tx_id")
#: Whom a stream is about, the likeliest first.
_ENTITIES = _words(
    "card customer client account user member subscriber cardholder patient policy player device merchant terminal"
)
_ENTITY = re.compile(rf"^({'|'.join(_ENTITIES)})(_?(?:id|uuid|no|nr|num|number|key|code|hash|ref))?$")

Use = Literal["label", "id", "time", "key", "field", "left out"]


@dataclass(frozen=True, slots=True)
class Column:
    """What becomes of a column. `type` is None where it is no declared field; `note` is the reason, in words."""

    name: str
    use: Use
    type: FieldType | None = None
    required: bool = True
    note: str = ""


@dataclass(frozen=True, slots=True)
class Inferred:
    """A stream, as a file suggests it. `positive` is the label's value that means 1; None where it is 1 or true."""

    name: str
    rows: int
    positives: int
    unlabelled: int
    label: str
    positive: str | None
    id: str | None
    time: str | None
    key: str | None
    columns: tuple[Column, ...]

    @property
    def fields(self) -> tuple[Column, ...]:
        """The columns that become declared fields."""
        return tuple(column for column in self.columns if column.type is not None)


def infer(
    path: Path,
    *,
    label: str | None = None,
    key: str | None = None,
    time: str | None = None,
    id: str | None = None,
    name: str | None = None,
) -> Inferred:
    """Look at a labelled file; what is given is taken, the rest is inferred.

    Raises:
        DataError: the file cannot be read, there is no column of a given name, the label is not clear or has not two
            values, or no column is left for a model.
    """
    look = look_at(path)
    truth = look.named(label) if label is not None else _find_label(look)
    positive, positives = _positive(look, truth)
    uses: dict[str, Use] = {truth.name: "label"}
    id_name = _id(look, id, uses)
    uses |= {id_name: "id"} if id_name else {}
    time_name = _time(look, time, uses)
    uses |= {time_name: "time"} if time_name else {}
    key_name = _key(look, key, uses)
    if key_name:
        uses.setdefault(key_name, "key")
    judge = _Judge(look, truth, look.values(truth).cast(pl.String).eq_missing(positive).to_numpy())
    columns = tuple(judge.column(facts, uses.get(facts.name)) for facts in look.facts)
    if not any(column.use == "field" for column in columns):
        reasons = "; ".join(f"'{column.name}': {column.note}" for column in columns)
        raise DataError(f"{path} has no column that a model could learn from ({reasons}).")
    return Inferred(
        name=name or stream_name(path),
        rows=look.rows,
        positives=positives,
        unlabelled=truth.blanks,
        label=truth.name,
        positive=None if _is_plain(truth) else positive,
        id=id_name,
        time=time_name,
        key=key_name,
        columns=columns,
    )


def _find_label(look: Look) -> Facts:
    exact = [facts for facts in look.facts if facts.word in _LABELS or facts.word.removeprefix("is_") in _LABELS]
    last = [facts for facts in look.facts if facts.word.rsplit("_", 1)[-1] in _LABELS and facts not in exact]
    two = [[facts for facts in some if facts.distinct == 2] for some in (exact, last)]
    candidates = two[0] or two[1]
    if len(candidates) == 1:
        return candidates[0]
    if candidates:
        names = ", ".join(f"'{facts.name}'" for facts in candidates)
        raise DataError(f"Several columns of {look.path} could be the label: {names}. Say which with --label COLUMN.")
    if exact:
        return exact[0]  # its values will be refused with a sentence
    names = ", ".join(f"'{facts.name}'" for facts in look.facts if facts.distinct == 2) or "none"
    raise DataError(
        f"No column of {look.path} is named like a label (label, fraud, target, churn, …). "
        f"Say which it is with --label COLUMN; these have two values: {names}."
    )


def _positive(look: Look, truth: Facts) -> tuple[str, int]:
    """The label's value that means 1, as text, and how many rows have it."""
    if truth.distinct != 2:
        some = [str(value) for value in look.values(truth).drop_nulls().unique().sort().head(4)]
        values = ", ".join([*some, "…"] if truth.distinct > 4 else some)
        raise DataError(
            f"The label '{truth.name}' has {truth.distinct:,} different values ({values}), and Écluse answers questions of "
            "yes or no: a label has exactly two. Name another column with --label COLUMN, or make it two in the file."
        )
    text = pl.col(look.place(truth)).cast(pl.String)
    counts = dict(
        look.frame.select(text.alias("v")).drop_nulls().group_by("v").len().collect(engine="streaming").iter_rows()
    )
    rare, common = sorted(counts, key=lambda value: (counts[value], value))
    for value, other in ((rare, common), (common, rare)):
        if value.strip().lower() in _TRUE or other.strip().lower() in _FALSE:
            return value, counts[value]
    return rare, counts[rare]


def _is_plain(truth: Facts) -> bool:
    """Whether the label is 0 and 1 or false and true already."""
    return truth.dtype != pl.String and (truth.low, truth.high) == (0, 1)


def _id(look: Look, named: str | None, taken: dict[str, Use]) -> str | None:
    if named is not None:
        facts = look.named(named)
        if _field_type(facts) not in (FieldType.TEXT, FieldType.INTEGER):
            raise DataError(f"'{named}' holds {facts.dtype}: an event's id is text or a whole number.")
        return _free(facts, "id", taken)
    found = [
        facts
        for facts in look.facts
        if _can_be_field(facts, taken)
        and _ID.search(facts.word)
        and _field_type(facts) in (FieldType.TEXT, FieldType.INTEGER)
        and not facts.blanks
        and look.values(facts).is_unique().all()
        and facts.distinct > 0.9 * look.rows  # approximate, within some percent
    ]
    return min(found, key=lambda facts: _rank(facts.word, _IDS)).name if found else None


def _time(look: Look, named: str | None, taken: dict[str, Use]) -> str | None:
    if named is not None:
        if not _holds_times(look, look.named(named)):
            raise DataError(
                f"'{named}' holds no times: a time is a date and time (2026-01-31T10:00:00Z), "
                "or seconds or milliseconds since 1970."
            )
        return _free(look.named(named), "time", taken)
    possible = [
        facts
        for facts in look.facts
        if _can_be_field(facts, taken)
        and not _OTHER_TIMES.search(facts.word)
        and not leak_by_name(facts.word, "")
        and (isinstance(facts.dtype, pl.Datetime) or _TIME_WORDS & set(facts.word.split("_")))
        and _holds_times(look, facts)
    ]
    return min(possible, key=lambda facts: _rank(facts.word, _TIMES)).name if possible else None


def _key(look: Look, named: str | None, taken: dict[str, Use]) -> str | None:
    if named is not None:
        if taken.get(look.named(named).name) == "label":
            raise DataError(f"'{named}' is the label: it cannot be the key too.")
        return named
    found = [
        facts
        for facts in look.facts
        if facts.name not in taken
        and (entity := _ENTITY.match(facts.word))
        and _field_type(facts) in (FieldType.TEXT, FieldType.INTEGER)
        and (5 if entity[2] else _MOST_CODES) <= facts.distinct <= 0.9 * look.rows
    ]
    return min(found, key=lambda facts: _ENTITIES.index(_entity(facts.word))).name if found else None


def _entity(word: str) -> str:
    entity = _ENTITY.match(word)
    return entity[1] if entity else ""


def _can_be_field(facts: Facts, taken: dict[str, Use]) -> bool:
    return facts.name not in taken and facts.name != "" and not ILLEGAL_IN_NAMES.search(facts.name)


def _free(facts: Facts, use: Use, taken: dict[str, Use]) -> str:
    if facts.name in taken:
        raise DataError(f"'{facts.name}' is the event's {taken[facts.name]} already: it cannot be its {use} too.")
    if not _can_be_field(facts, taken):
        raise DataError(f"'{facts.name}' cannot name a field: rename the column (no quotes, no backslashes).")
    return facts.name


def _rank(word: str, order: tuple[str, ...]) -> int:
    return order.index(word) if word in order else len(order)


def _field_type(facts: Facts) -> FieldType | None:
    """The type of a field that holds the column; None where no field can."""
    dtype = facts.dtype
    if dtype.is_float():
        return FieldType.NUMBER
    if dtype.is_integer():
        fits = facts.low is None or (facts.low >= _INT64[0] and facts.high <= _INT64[1])
        return FieldType.INTEGER if fits else None
    if isinstance(dtype, pl.Datetime):
        return FieldType.TIME
    if dtype == pl.Boolean:
        return FieldType.BOOLEAN
    return FieldType.TEXT if dtype in (pl.String, pl.Categorical, pl.Enum) else None


def _holds_times(look: Look, facts: Facts) -> bool:
    """Whether the column can be a field of type time: times, RFC 3339 texts, or epoch numbers of 1990 to 2100."""
    if isinstance(facts.dtype, pl.Datetime):
        return True
    if facts.dtype.is_numeric() and facts.low is not None:
        return all(_YEARS[0] <= (seconds(float(value)) or 0.0) <= _YEARS[1] for value in (facts.low, facts.high))
    if facts.dtype != pl.String or facts.blanks == look.rows:
        return False
    try:
        msgspec.convert(look.values(facts).drop_nulls().head(_TRIED_TIMES).to_list(), list[dt.datetime])
    except msgspec.ValidationError:
        return False
    return True


class _Judge:
    """Decides what becomes of each column, once the label is known; `label` is true where a sampled row is positive."""

    def __init__(self, look: Look, truth: Facts, label: NDArray[np.bool_]) -> None:
        self._look = look
        self._truth = truth
        self._label = label
        self._labelled = look.values(truth).is_not_null()

    def column(self, facts: Facts, use: Use | None) -> Column:
        """What becomes of one column."""
        required = facts.blanks == 0
        blanks = "" if required else f"blank in {facts.blanks:,} of {self._look.rows:,} rows"
        match use:
            case "label":
                return Column(facts.name, "label", note="the truth")
            case "key":
                return Column(
                    facts.name, "key", note=f"{_about(facts.distinct)} values: the record key, so order holds for each"
                )
            case "time":
                return Column(facts.name, "time", FieldType.TIME, required, blanks or "the event's own time")
            case "id":
                return Column(facts.name, "id", _field_type(facts), required, blanks or "unique")
        leak = None
        reason = self._unusable(facts)
        if reason is None:
            leak = self._leak(facts)
        if reason or (leak and leak.certain):
            return Column(facts.name, "left out", note=reason or (leak.reason if leak else ""))
        note = "; ".join(part for part in (leak.reason if leak else "", blanks) if part)
        return Column(facts.name, "field", _field_type(facts), required, note)

    def _leak(self, facts: Facts) -> Leak | None:
        values = self._look.values(facts).filter(self._labelled)
        by_values = leak_by_values(values, self._label[self._labelled.to_numpy()])
        if by_values and by_values.certain:
            return by_values
        return leak_by_name(facts.word, self._truth.word) or by_values

    def _unusable(self, facts: Facts) -> str | None:
        """Why a model cannot use the column, if it cannot."""
        kind = _field_type(facts)
        if not facts.name:
            return "its name is empty"
        if ILLEGAL_IN_NAMES.search(facts.name):
            return "its name holds a quote, a backslash or a control character, which no field's name can"
        if facts.dtype.is_nested():
            return "it holds lists or objects, and an event is flat"
        if facts.blanks == self._look.rows:
            return "it is always blank"
        if kind is None:
            return f"no field holds what it holds ({facts.dtype})"
        if facts.low == facts.high and not facts.blanks:
            return f"it is always {facts.low}"
        if kind is FieldType.TIME or (kind is FieldType.TEXT and _holds_times(self._look, facts)):
            return "a second time: a model wants a number made of it, such as an age in days"
        if kind is FieldType.TEXT:
            return self._unusable_text(facts)
        if kind is FieldType.INTEGER:
            return self._unusable_number(facts)
        return None

    def _unusable_number(self, facts: Facts) -> str | None:
        if facts.distinct > 0.9 * self._look.rows and facts.high - facts.low == self._look.rows - 1:
            return "it counts the rows"
        if (_ID.search(facts.word) or _ENTITY.match(facts.word)) and facts.distinct > _MOST_CODES:
            return f"it names one of {_about(facts.distinct)}: a number that says nothing by its size"
        return None

    def _unusable_text(self, facts: Facts) -> str | None:
        filled = self._look.rows - facts.blanks
        if facts.distinct > max(_MOST_CATEGORIES, filled / 2):
            spaces = self._look.values(facts).cast(pl.String).str.contains(" ", literal=True).any()
            if facts.distinct > 0.9 * filled and not spaces:
                return "another text on almost every row: if it is the event's id, say so with --id"
            return f"free text: {_about(facts.distinct)} different texts in {filled:,} rows"
        length = self._look.values(facts).cast(pl.String).str.len_chars().mean()
        if isinstance(length, float) and length > _LONG_TEXT:
            return f"free text: {length:.0f} characters on average"
        return None


def _about(count: int) -> str:
    """A count that is approximate where it is large, to two figures."""
    return f"{count}" if count < 100 else f"about {round(count, 2 - len(str(count))):,}"
