"""The columns of a table, as Polars and as Delta name their types."""

from collections.abc import Collection, Mapping

import polars as pl
from deltalake import DeltaTable, Field
from deltalake.schema import PrimitiveType

from ecluse.contract.tables import Kind, Table
from ecluse.errors import StoreError

_POLARS: dict[Kind, pl.DataType] = {
    Kind.TEXT: pl.String(),
    Kind.INTEGER: pl.Int64(),
    Kind.NUMBER: pl.Float64(),
    Kind.BOOLEAN: pl.Boolean(),
    Kind.TIME: pl.Datetime("us", "UTC"),
    Kind.DAY: pl.Date(),
}
_DELTA = {
    Kind.TEXT: "string",
    Kind.INTEGER: "long",
    Kind.NUMBER: "double",
    Kind.BOOLEAN: "boolean",
    Kind.TIME: "timestamp",
    Kind.DAY: "date",
}


def polars_schema(table: Table) -> pl.Schema:
    """The table's columns in their order, as Polars types. Times have microseconds and are UTC."""
    return pl.Schema({name: _POLARS[kind] for name, kind in table.columns.items()})


def stored_types(delta: DeltaTable) -> dict[str, str]:
    """The Delta type of each column that a table has."""
    types = {field.name: field.type for field in delta.schema().fields}
    return {name: kind.type if isinstance(kind, PrimitiveType) else str(kind) for name, kind in types.items()}


def delta_fields(table: Table, stored: Collection[str] = ()) -> list[Field]:
    """The table's columns, as Delta's; without those that are `stored`. Each may be null."""
    return [Field(name, PrimitiveType(_DELTA[kind])) for name, kind in table.columns.items() if name not in stored]


def require_additive(table: Table, stored: Mapping[str, str], url: str) -> None:
    """Hold a table's declared columns against those that it has: columns may come, and none changes its type.

    Args:
        table: as it is declared now.
        stored: the Delta type of each column that the table at `url` has.
        url: for the sentence.

    Raises:
        StoreError: a column has another type there, or its name differs by its capitals only.
    """
    spellings = {name.lower(): name for name in stored}
    for name, kind in table.columns.items():
        there = spellings.get(name.lower(), name)
        if there != name:
            raise StoreError(
                url,
                f"it has the column '{there}', and '{name}' differs from that by its capitals only, which Delta does not "
                "tell apart. Call the field as it was called, or otherwise.",
            )
        if name in stored and stored[name] != _DELTA[kind]:
            raise StoreError(
                url,
                f"its column '{name}' has the type {stored[name]}, and is declared as {_DELTA[kind]} ({kind}) now. A column "
                "keeps its type: declare the field as it was, or give it another name, or name another store.",
            )
