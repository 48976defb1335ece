"""Labels come in: what a value means, and a file's rows as the records of an origin's topic."""

import datetime as dt
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import msgspec
import polars as pl

from ecluse import tables
from ecluse.contract.codecs import content_headers, encoder
from ecluse.contract.records import Label
from ecluse.contract.schema import FieldType, seconds
from ecluse.errors import DataError
from ecluse.settings import Settings
from ingest.publisher import Publisher
from ingest.replay import cells, in_batches

#: Any consumer can read JSON; labels are few.
HEADERS = content_headers("json")
_VALUES = dict.fromkeys(("1", "1.0", "true", "positive", "fraud"), 1)
_VALUES |= dict.fromkeys(("0", "0.0", "false", "negative", "legit"), 0)
_KINDS = {
    "event_id": FieldType.TEXT,
    "labeler": FieldType.TEXT,
    "confidence": FieldType.NUMBER,
    "alerted": FieldType.BOOLEAN,
}
_SHOWN_PROBLEMS = 10


def meaning(word: str, positive: str | None) -> int | None:
    """What a person's word for a label means: 1, 0, or null, which takes a label back.

    Args:
        word: 1, positive, fraud, 0, negative, legit (true and false do too), none, or `positive`.
        positive: `model.positive`, the training file's word for 1.

    Raises:
        DataError: it means nothing, or two things.
    """
    plain = word.strip().lower()
    if plain == "none":
        return None
    value = _VALUES.get(plain)
    if positive is not None and word.strip() == positive:
        if value == 0:
            raise DataError(
                f"'{positive}' is what the training file calls positive (model.positive), but a label of 0 is negative: "
                "write positive or negative."
            )
        return 1
    if value is None:
        own = f" or '{positive}'" if positive else ""
        raise DataError(f"'{word}' is no label: 1, positive or fraud{own}; 0, negative or legit; none takes one back.")
    return value


def column_meaning(text: str, positive: str | None) -> int:
    """What a cell of the column of truth means, 1 or 0, as in training: where `model.positive` is set, all else is 0.

    Raises:
        DataError: it means neither, or it is a 1 where another word means that.
    """
    value = _VALUES.get(text.lower())
    if positive is None:
        if value is None:
            raise DataError(f"the value '{text}' is neither 0/1 nor true/false; model.positive can say what means 1")
        return value
    if text in (positive, f"{positive}.0"):
        return 1
    if value == 1 and _VALUES.get(positive.lower()) is None:
        raise DataError(f"the value '{text}' means positive, but model.positive says that '{positive}' does")
    return 0


class LabelFile:
    """The labels of a file, all checked before anything is sent, in memory that does not grow with the file.

    Rows whose value is blank have no label and are left out: no file takes labels back by its gaps.

    Args:
        settings: the stream. The usual columns are `stream.id_field` or `event_id`; `model.label` or `value`; `known_at` or
            `label_known_at`, if there is one.
        path: a .csv, .jsonl, .ndjson or .parquet file.
        columns: the columns that have other names, by field of `Label`; `labeler`, `confidence` and `alerted` are taken only
            where they are named.
        progress: is told how many rows are checked.

    Raises:
        DataError: the file cannot be read, lacks a column, or has rows that are no labels: each is named with its reason.
    """

    def __init__(
        self,
        settings: Settings,
        path: Path,
        columns: Mapping[str, str] = MappingProxyType({}),
        progress: Callable[[int], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._positive = settings.model.positive
        self._needs_known_at = settings.stream.clock == "event"
        self._encode = encoder("json")
        #: Which column holds what of a label.
        self.columns = _found(settings, path, columns, tables.columns(tables.scan(path), path))
        id_field = settings.stream.fields.get(settings.stream.id_field or "")
        self._kinds = _KINDS | ({"event_id": id_field.type} if id_field else {})
        # As texts, so that a bad cell is its row's fault, not the file's; but an id as `ecluse publish` reads it.
        texts = [
            name for role, name in self.columns.items() if role != "event_id" or self._kinds[role] is FieldType.TEXT
        ]
        self._frame = tables.scan(path, texts).select(list(dict.fromkeys(self.columns.values())))
        self.total = self.left_out = 0
        self._check(progress)

    def _check(self, progress: Callable[[int], None]) -> None:
        """Count the labels and the rows without one."""
        problems: list[str] = []
        wrong = done = 0
        for batch in in_batches(self._frame, self.path):
            for number, label in enumerate(self._labels(batch), start=done + 1):
                if label is None:
                    self.left_out += 1
                elif isinstance(label, str):
                    wrong += 1
                    problems += [f"Row {number:,}: {label}."] if wrong <= _SHOWN_PROBLEMS else []
                else:
                    self.total += 1
            done += batch.height
            progress(done)
        if wrong:
            more = [f"… and {wrong - _SHOWN_PROBLEMS:,} more."] if wrong > _SHOWN_PROBLEMS else []
            summary = f"{wrong:,} of the {done:,} rows of {self.path} are no labels; nothing was published."
            raise DataError("\n".join([summary, *problems, *more]))

    async def publish(self, publisher: Publisher, progress: Callable[[int], None] = lambda _: None) -> None:
        """Publish the labels and wait for their confirmation; `progress` is told how many are confirmed.

        Raises:
            DataError: the file is not as it was when it was checked; what came before is published.
            DeliveryError: the broker refused a label, or did not confirm the last ones in time.
        """
        for batch in in_batches(self._frame, self.path):
            await publisher.publish_encoded(self._records(batch), HEADERS)
            progress(publisher.confirmed)
        await publisher.flush()
        progress(publisher.confirmed)

    def _records(self, batch: pl.DataFrame) -> Iterator[tuple[bytes, bytes]]:
        for label in self._labels(batch):
            if isinstance(label, str):
                raise DataError(f"{self.path} was changed while it was published: {label}.")
            if label is not None:
                yield label.event_id.encode(), self._encode(label)

    def _labels(self, batch: pl.DataFrame) -> Iterator[Label | str | None]:
        """Each row's label, or why it is none; None where its value is blank."""
        cells_of = {role: self._cells(role, batch[name]) for role, name in self.columns.items()}
        meanings: dict[str, int] = {}
        for row in zip(*cells_of.values(), strict=True):
            try:
                yield self._label(dict(zip(cells_of, row, strict=True)), meanings)
            except DataError as error:
                yield str(error)

    def _cells(self, role: str, column: pl.Series) -> Sequence[Any]:
        if role == "value":
            return tables.as_texts(column).to_list()
        return cells(column, self._kinds[role]) if role in self._kinds else column.to_list()

    def _label(self, row: dict[str, Any], meanings: dict[str, int]) -> Label | None:
        """The label of one row; None where its value is blank.

        Raises:
            DataError: it is none.
        """
        text = (row["value"] or "").strip()
        if not text:
            return None
        if text not in meanings:
            meanings[text] = column_meaning(text, self._positive)
        given = {name: cell for name, cell in row.items() if cell is not None} | {"value": meanings[text]}
        if "event_id" not in given:
            raise DataError(f"the event's id ('{self.columns['event_id']}') is blank")
        given["event_id"] = str(given["event_id"])
        known_at = moment(given.pop("known_at", None), self.columns.get("known_at", ""))
        if known_at is None and self._needs_known_at:
            raise DataError(f"'{self.columns['known_at']}' is blank, and the stream runs on its events' clock")
        return make_label(known_at=known_at, **given)


def make_label(**given: Any) -> Label:
    """A label, checked.

    Raises:
        DataError: a value is not within its limits.
    """
    try:
        label = msgspec.convert(given, Label)
        msgspec.json.encode(label)
    except msgspec.ValidationError as error:
        raise DataError(_plain(error)) from error
    except UnicodeEncodeError as error:  # a word of the command line may hold any bytes
        raise DataError("What it says is not UTF-8.") from error
    return label


def _plain(error: msgspec.ValidationError) -> str:
    text = str(error)
    what, _, field = text.partition(" - at `$.")
    return f"{field.rstrip('`')}: {what[:1].lower()}{what[1:]}" if field else text


def moment(cell: object, column: str) -> float | None:
    """A cell's time as seconds since 1970; None where it is blank.

    Raises:
        DataError: it is no time.
    """
    try:
        when = _read_time(cell.strip()) if isinstance(cell, str) else cell
        if when is None or (isinstance(when, float) and math.isnan(when)):
            return None
        if isinstance(when, dt.datetime | int | float) and not isinstance(when, bool):
            at = seconds(when)
            dt.datetime.fromtimestamp(at or 0.0, dt.UTC)  # a calendar holds it
            return at
    except (ValueError, OverflowError, OSError):
        pass
    raise DataError(f"'{column}' is no time: '{str(cell)[:40]}'")


def _read_time(text: str) -> dt.datetime | float:
    try:
        return float(text)
    except ValueError:
        return dt.datetime.fromisoformat(text)


def _found(settings: Settings, path: Path, asked: Mapping[str, str], present: pl.Schema) -> dict[str, str]:
    """The columns of a file that hold what of a label.

    Raises:
        DataError: one that is named or needed is not there, or holds lists or objects.
    """
    there = f"Its columns: {', '.join(present)}."
    id_field, label = settings.stream.id_field, settings.model.label
    usual = {"event_id": (id_field, "event_id"), "value": (label, "value"), "known_at": ("known_at", "label_known_at")}
    found = dict(asked)
    for role, names in usual.items():
        if name := next((name for name in names if name in present), None):
            found.setdefault(role, name)
    if "event_id" not in found:
        ids = f"{id_field} (stream.id_field)" if id_field else "event_id"
        raise DataError(f"{path} has no column {ids}: --event-id names the one that holds the events' ids. {there}")
    if "value" not in found:
        raise DataError(
            f"{path} has no column {label} (model.label): --value names the one that holds the truth. {there}"
        )
    if "known_at" not in found and settings.stream.clock == "event":
        raise DataError(
            f"{path} does not say when its labels became known, and the stream runs on its events' clock: "
            f"--known-at names the column. {there}"
        )
    for name in found.values():
        if name not in present:
            raise DataError(f"{path} has no column '{name}'. {there}")
        if present[name].is_nested():
            raise DataError(f"The column '{name}' of {path} holds lists or objects: a label is a flat row.")
    return {role: found[role] for role in Label.__struct_fields__ if role in found}
