"""`ecluse score`: a file's rows scored in batch, as the stream would score them."""

import contextlib
import signal
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, ServersOption, out, print_json, progress_bar, settings_of
from ecluse.errors import DataError

if TYPE_CHECKING:
    import polars as pl

    from ecluse.sections import StreamSettings
    from ingest import Replay
    from scoring.batch import BatchScorer
    from scoring.champion import Champion

_ENDINGS = (".csv", ".jsonl", ".ndjson", ".parquet")
#: Results that are held before they go to disk: some tens of megabytes.
_HELD_ROWS = 100_000


def score(
    file: Annotated[Path, typer.Argument(help="A .csv, .jsonl, .ndjson or .parquet file.", show_default=False)],
    to: Annotated[
        Path, typer.Option("--out", help="Where the scores go; its ending names the format.", show_default=False)
    ],
    model: Annotated[
        int | None,
        typer.Option(min=1, help="A released version; the champion where not given.", show_default=False),
    ] = None,
    config: ConfigOption = None,
    servers: ServersOption = None,
    as_json: JsonOption = False,
) -> None:
    """Score a file's rows in batch: the scores, decisions and errors that the stream would give the same rows."""
    _require_files(file, to)
    from ingest import Replay
    from scoring.batch import BatchScorer, model_to_score_with

    settings = settings_of(config, servers)
    replay = Replay(settings, file)
    with progress_bar("fetching the model") as tell:
        champion = model_to_score_with(settings, model, tell)
    start = time.monotonic()
    counts: Counter[str] = Counter()
    with progress_bar("scoring") as tell:
        _write(_results(replay, BatchScorer(settings, champion), counts, tell), to)
    _print_result(to, champion, counts, time.monotonic() - start, as_json)


def _print_result(to: Path, champion: "Champion", counts: Counter[str], elapsed: float, as_json: bool) -> None:
    rows, failed = counts.total(), counts[""]
    decisions = {decision: counts[decision] for decision in ("allow", "review", "block")}
    if as_json:
        print_json(
            {
                "out": str(to),
                "model": champion.name,
                "version": champion.version,
                "rows": rows,
                "scored": rows - failed,
                "failed": failed,
                "decisions": decisions,
                "seconds": round(elapsed, 3),
                "rows_per_second": round(rows / elapsed, 1),
            }
        )
        return
    decided = ", ".join(f"{count:,} {decision}" for decision, count in decisions.items())
    out.print(
        f"{rows - failed:,} rows scored by {champion.name} version {champion.version} into {to}"
        f" in {elapsed:.1f} s ({rows / elapsed:,.0f}/s): {decided}.",
        markup=False,
        soft_wrap=True,
    )
    if failed:
        out.print(f"{failed:,} rows could not be scored: the column 'error' says why.", soft_wrap=True)


def _require_files(file: Path, to: Path) -> None:
    """Refuse names that cannot be meant.

    Raises:
        typer.BadParameter: an ending is of no format, or both are one file.
    """
    for path, hint in ((file, "FILE"), (to, "--out")):
        if path.suffix.lower() not in _ENDINGS:
            raise typer.BadParameter(
                f"{path} must end in {', '.join(_ENDINGS[:-1])} or {_ENDINGS[-1]}", param_hint=hint
            )
    if file.exists() and to.exists() and file.samefile(to):
        raise typer.BadParameter("it is the file that is read", param_hint="--out")


def _results(
    replay: "Replay", scorer: "BatchScorer", counts: Counter[str], tell: Callable[[int, int], None]
) -> Iterator["pl.DataFrame"]:
    """The results, at least one table of them; `counts` takes the decisions, and `tell` is told of the rows that are done."""
    import polars as pl

    done = 0
    for batch in replay.batches():
        results = scorer(replay.records(batch))
        counts.update(decision or "" for decision in results["decision"])
        yield _table(replay.stream, batch, results, done)
        done += batch.height
        tell(done, replay.total)
    if not done:
        yield _table(replay.stream, pl.DataFrame(schema=replay.columns), scorer(()), 0)


def _table(stream: "StreamSettings", batch: "pl.DataFrame", results: "pl.DataFrame", before: int) -> "pl.DataFrame":
    """The rows' numbers in the file, the columns that say which event each is and whose, and the results."""
    import polars as pl

    numbers = pl.int_range(before + 1, before + batch.height + 1, dtype=pl.Int64, eager=True).alias("row")
    named = dict.fromkeys(filter(None, (stream.id_field, stream.time_field, stream.key_field)))
    ours = {"row", *results.columns}
    columns = [
        batch[name].alias(f"{name}_in_file" if name in ours else name) for name in named if name in batch.columns
    ]
    return pl.DataFrame([numbers, *columns, *results])


def _write(results: Iterator["pl.DataFrame"], to: Path) -> None:
    """Write the results as one file, in memory that does not grow with it: it appears whole, or not at all.

    Parquet cannot be appended to: parts go into a folder beside the file, and a last pass makes one of them.

    Raises:
        DataError: it cannot be written there.
    """
    from polars.exceptions import PolarsError

    if to.suffix.lower() != ".parquet":
        results = map(_in_text, results)
    try:
        with tempfile.TemporaryDirectory(prefix=".ecluse-score-", dir=to.parent) as name:
            folder = Path(name)
            parts: list[Path] = []
            for held in _held(results):
                parts.append(folder / f"{len(parts)}.parquet")
                with _unbroken():
                    held.write_parquet(parts[-1])
            whole = folder / to.name
            with _unbroken():
                _join(parts, whole)
            whole.replace(to)
    except (PolarsError, OSError) as error:
        reason = error.strerror if isinstance(error, OSError) else None
        raise DataError(f"{to} cannot be written: {reason or error}.") from error


@contextlib.contextmanager
def _unbroken() -> Iterator[None]:
    """Let Ctrl-C wait until this is over: broken off in mid-write, Polars' threads panic, and say so at length."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    asked: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: asked.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if asked:
        raise KeyboardInterrupt


def _in_text(table: "pl.DataFrame") -> "pl.DataFrame":
    """Times as events carry them: RFC 3339 in UTC."""
    from ecluse import tables

    return table.with_columns(tables.rfc3339(column) for column in table if column.dtype.is_temporal())


def _held(tables: Iterator["pl.DataFrame"]) -> Iterator["pl.DataFrame"]:
    """The same rows in fewer tables."""
    import polars as pl

    held: list[pl.DataFrame] = []
    for table in tables:
        held.append(table)
        if sum(part.height for part in held) >= _HELD_ROWS:
            yield pl.concat(held)
            held = []
    if held:
        yield pl.concat(held)


def _join(parts: list[Path], whole: Path) -> None:
    """Make one file of the parts, by its ending."""
    import polars as pl

    rows = pl.scan_parquet(parts)
    match whole.suffix.lower():
        case ".parquet":
            rows.sink_parquet(whole)
        case ".csv":
            rows.sink_csv(whole)
        case _:
            rows.sink_ndjson(whole)
