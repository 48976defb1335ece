"""A look at a file in bounded memory: one pass for facts about each column, and a sample of the rows."""

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import polars as pl

from ecluse import tables
from ecluse.errors import DataError

_SAMPLE_ROWS = 200_000
_SAMPLE_CELLS = 10_000_000
_SEED = 7


@dataclass(frozen=True, slots=True)
class Facts:
    """One column over the whole file. `word` is its name as lower-case words joined by underscores, to recognise it by;
    `blanks` counts null, NaN and infinity; `distinct` counts values, approximately where there are many."""

    name: str
    word: str
    dtype: pl.DataType
    blanks: int
    distinct: int
    low: Any
    high: Any


@dataclass(frozen=True, slots=True)
class Look:
    """A file's facts. The rows' columns are named c0, c1, …, because a column's own name may be anything."""

    path: Path
    rows: int
    facts: tuple[Facts, ...]
    frame: pl.LazyFrame
    sample: pl.DataFrame

    def place(self, facts: Facts) -> str:
        """The column's name in `frame` and `sample`."""
        return f"c{self.facts.index(facts)}"

    def values(self, facts: Facts) -> pl.Series:
        """The column's values in the sample."""
        return self.sample[self.place(facts)]

    def named(self, name: str) -> Facts:
        """The facts of a column that a person named.

        Raises:
            DataError: there is none of that name.
        """
        for facts in self.facts:
            if facts.name == name:
                return facts
        known = ", ".join(f"'{facts.name}'" for facts in self.facts)
        raise DataError(f"{self.path} has no column '{name}'. Its columns are {known}.")


def look(path: Path) -> Look:
    """Look at a file.

    Raises:
        DataError: it cannot be read, or has no rows.
    """
    frame = tables.scan(path)
    schema = tables.columns(frame, path)
    frame = frame.select(_readable(pl.nth(i), dtype).alias(f"c{i}") for i, dtype in enumerate(schema.dtypes()))
    counted = tables.collect(frame.select(pl.len().alias("rows"), *_counts(schema)), path).row(0, named=True)
    rows = counted["rows"]
    if rows == 0:
        raise DataError(f"{path} has no rows.")
    wanted = max(1, min(_SAMPLE_ROWS, _SAMPLE_CELLS // len(schema)))
    sampled = frame
    if rows > wanted:
        keep = pl.col("row").hash(_SEED) % 10_000 < 10_000 * wanted // rows
        sampled = frame.with_row_index("row").filter(keep).drop("row")
    flat = [f"c{i}" for i, dtype in enumerate(schema.dtypes()) if not dtype.is_nested()]
    sample = tables.collect(sampled.select(flat), path)
    if rows == sample.height:  # the whole file: what was approximate can be exact
        counted |= {f"distinct{place[1:]}": sample[place].drop_nulls().n_unique() for place in flat}
    return Look(
        path, rows, tuple(_facts(i, *column, counted) for i, column in enumerate(schema.items())), frame, sample
    )


def _facts(i: int, name: str, dtype: pl.DataType, counted: Mapping[str, Any]) -> Facts:
    distinct, low, high = (counted.get(f"{what}{i}") for what in ("distinct", "low", "high"))
    return Facts(name, word(name), dtype, counted[f"blanks{i}"], distinct or 0, low, high)


def word(name: str) -> str:
    """A name as lower-case words joined by underscores: ``customerId``, ``Customer ID`` and ``customer.id`` are alike."""
    parted = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", name)
    return re.sub(r"[\W_]+", "_", parted).strip("_").lower()


def stream_name(path: Path) -> str:
    """A legal stream name from a file's: lower-case letters, digits and hyphens."""
    plain = unicodedata.normalize("NFKD", path.stem).encode("ascii", "ignore").decode().lower()
    return re.sub(r"[^a-z0-9]+", "-", plain)[:64].strip("-") or "stream"


def _readable(column: pl.Expr, dtype: pl.DataType) -> pl.Expr:
    if dtype in (pl.Categorical, pl.Enum):
        return column.cast(pl.String)
    if dtype.is_float():  # NaN and infinity are blanks: JSON cannot carry them
        return pl.when(column.is_finite()).then(column)
    return column


def _counts(schema: pl.Schema) -> list[pl.Expr]:
    counts = []
    for i, dtype in enumerate(schema.dtypes()):
        column = pl.col(f"c{i}")
        counts.append(column.null_count().alias(f"blanks{i}"))
        if dtype.is_numeric() or dtype.is_temporal() or dtype in (pl.String, pl.Boolean, pl.Categorical, pl.Enum):
            distinct = column.drop_nulls().n_unique() if dtype == pl.Boolean else column.drop_nulls().approx_n_unique()
            counts += [distinct.alias(f"distinct{i}"), column.min().alias(f"low{i}"), column.max().alias(f"high{i}")]
    return counts
