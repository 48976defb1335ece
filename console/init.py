"""`ecluse init`: a labelled file in, a commented ``ecluse.toml`` out."""

import json
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from console.output import ConfigOption, JsonOption, fail, print_json, print_table, say

if TYPE_CHECKING:
    from ingest.infer import Column, Inferred

_DEFAULT_FILE = Path("ecluse.toml")
#: The secret that draws who goes past the model, beside the keys that sign models.
_DRAWS = "bypass.key"
#: The key of the training store's hashes.
_HASHES = "hash.key"
_ColumnOption = Annotated[str | None, typer.Option(show_default=False, metavar="COLUMN")]


def init(
    file: Annotated[Path, typer.Argument(help="Labelled rows: .csv, .jsonl, .ndjson or .parquet.", show_default=False)],
    *,
    label: Annotated[str | None, typer.Option(help="The column that holds the truth.", metavar="COLUMN")] = None,
    key: Annotated[str | None, typer.Option(help="The entity: card, customer.", metavar="COLUMN")] = None,
    time: Annotated[str | None, typer.Option(help="The event's time.", metavar="COLUMN")] = None,
    id: Annotated[str | None, typer.Option(help="The event's id.", metavar="COLUMN")] = None,
    name: Annotated[str | None, typer.Option(help="The stream's name; made from the file's if not given.")] = None,
    config: ConfigOption = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite a configuration that is there.")] = False,
    as_json: JsonOption = False,
) -> None:
    """Look at a labelled file and write an ecluse.toml for it: a new stream in one step."""
    from ecluse.contract.topics import NAME
    from ecluse.model.signing import make_development_keys
    from ecluse.secrets import make_secret
    from ingest.infer import infer

    target = config or _DEFAULT_FILE
    if target.exists() and not force:
        fail(f"{target} is there already; --force overwrites it, --config names another file.")
    if name is not None and not NAME.match(name):
        fail(f"'{name}' cannot name a stream: lower-case letters, digits and hyphens, 64 at most.")
    found = infer(file, label=label, key=key, time=time, id=id, name=name)
    try:
        target.touch()  # before there are keys for it
        folder = target.parent / ".ecluse" / "keys"
        keys = make_development_keys(folder)
        for secret in (_DRAWS, _HASHES):
            make_secret(folder / secret)
        target.write_text(render(found, file, keys), encoding="utf-8", newline="\n")
    except OSError as error:
        fail(f"{target} cannot be written: {error.strerror}.")
    if as_json:
        print_json({"written": str(target), "stream": found})
        return
    _show(found)
    say(f"\nWritten to {target}, each decision as a comment beside it. Next:")
    option = f" --config {shlex.quote(str(target))}" if config else ""
    rows = shlex.quote(str(file))
    say("  ecluse broker start   # where there is no Kafka yet")
    for command in ("topics create", f"model train {rows}", "worker", "alerts --follow", f"publish {rows}"):
        say(f"  ecluse {command}{option}")
    say("The worker and the alerts go on until Ctrl-C: give each a terminal of its own.")


def _show(found: "Inferred") -> None:
    chosen = [column for column in found.columns if column.use != "field" or column.note.startswith("CHECK")]
    order = ("label", "id", "time", "key", "field", "left out")
    rows = [
        (_shown_name(column.name), column.use, _label_note(found) if column.use == "label" else column.note)
        for column in sorted(chosen, key=lambda column: order.index(column.use))
    ]
    print_table(("column", "becomes", "why"), rows, title=f"Stream '{found.name}' from {found.rows:,} rows")
    inputs = [column for column in found.columns if column.use == "field"]
    for kind in dict.fromkeys(column.type for column in inputs):
        names = [_shown_name(column.name) for column in inputs if column.type is kind]
        say(f"{len(names)} field{'s' if len(names) > 1 else ''} of type {kind}: {', '.join(names)}")


def render(found: "Inferred", file: Path, keys: tuple[Path, Path]) -> str:
    """The text of ``ecluse.toml`` for what was found in `file`, with each decision as a comment.

    `keys` are those that sign models, and by which they are trusted.
    """
    return "\n".join(_lines(found, file, keys)) + "\n"


def _lines(found: "Inferred", file: Path, keys: tuple[Path, Path]) -> Iterator[str]:
    yield f"# Written by `ecluse init` from {_quoted(file.name)}: {found.rows:,} rows, {len(found.columns)} columns."
    yield "# `ecluse config show` prints every setting there is, with what it is set to."
    yield ""
    yield from _stream(found)
    yield ""
    yield from _fields(found)
    yield ""
    yield from _model(found, keys)
    yield ""
    yield "[thresholds]"
    alerts, blocks = _budgets(found)
    yield "# The share of events that may raise an alert, and the share that may be blocked: yours to set."
    yield f"alert_budget = {alerts}"
    yield f"block_budget = {blocks}"
    yield ""
    yield from _bypass(found, keys[0].with_name(_DRAWS))
    yield ""
    yield from _labels_and_store(keys[0].with_name(_HASHES))
    yield ""
    yield from _loop()
    yield ""
    yield "[kafka]"
    yield "# KAFKA_BOOTSTRAP_SERVERS in the environment stands over this."
    yield '# bootstrap_servers = "127.0.0.1:9092"'


def _stream(found: "Inferred") -> Iterator[str]:
    yield "[stream]"
    yield f"name = {_quoted(found.name)}"
    yield from _role("id_field", found.id, "the id of an event", "an event's id is its place: topic-partition-offset")
    yield from _role("time_field", found.time, "the time of an event", "an event's time is that of its Kafka record")
    yield from _role(
        "key_field",
        found.key,
        "what events are about (a card, a customer)",
        "events have no key, and no order among them",
    )
    if any(column.type == "text" for column in found.fields):
        yield "# What people see of an event in alerts and dead letters: every field but text, unless you list the fields here."
        yield "# shown_fields = []"


def _fields(found: "Inferred") -> Iterator[str]:
    yield "# What an event must carry: a type, or { type, required = false } where the file has blanks."
    yield "[stream.fields]"
    for column in found.fields:
        comment = (
            column.note if column.use == "field" else f"the {column.use}{f'; {column.note}' if column.note else ''}"
        )
        yield _field(column) + (f"  # {_comment(comment)}" if comment else "")
    left_out = [column for column in found.columns if column.use == "left out"]
    if left_out:
        yield "# Left out; an event may carry them, nobody reads them:"
    for column in left_out:
        yield f"#   {_quoted(column.name)}: {_comment(column.note)}"


def _model(found: "Inferred", keys: tuple[Path, Path]) -> Iterator[str]:
    yield "[model]"
    yield f"# {_comment(_label_note(found))}"
    yield f"label = {_quoted(found.label)}"
    if found.positive is not None:
        yield f"positive = {_quoted(found.positive)}"
    inputs = [column.name for column in found.fields if column.use == "field"][:2]
    made = [f"{found.time}.hour"] if found.time else []
    yield "# The inputs of the model: every field above but id and time, unless you list some here. What is made of a field"
    yield "# has its name and a dot: .log1p of a number, .hour and .weekday of a time."
    yield f"# features = [{', '.join(map(_quoted, inputs + made))}]"
    yield "# Workers load only what a trusted key signed. These are development keys, made here: keep the private one out of"
    yield "# version control, and make keys of your own for production (docs/models.md)."
    yield f"signing_key = {_quoted(str(keys[0]))}"
    yield f"trusted_keys = [{_quoted(str(keys[1]))}]"


def _bypass(found: "Inferred", secret: Path) -> Iterator[str]:
    amount = next((column.name for column in found.fields if column.type == "number"), "amount")
    yield "[bypass]"
    yield "# A share of events may go past the model, so that its mistakes can be seen: `ecluse bypass set 2%` begins it, and"
    yield "# nothing goes past before (docs/bypass.md). The secret draws whom: keep it out of version control, and the same on"
    yield "# all workers."
    yield f"secret_file = {_quoted(str(secret))}"
    yield "# What an event is worth; those worth more than max_amount never go past, and budget is the most that may a day."
    yield f"# amount_field = {_quoted(amount)}"
    yield "# max_amount = 100.0"
    yield "# budget = 1000.0"


def _labels_and_store(hash_key: Path) -> Iterator[str]:
    yield "[labels]"
    yield "# Each origin of labels has a topic of its own; where two contradict each other, the first of them is believed."
    yield '# origins = ["chargeback", "analyst"]'
    yield "# How long after an event its outcome counts as known."
    yield "# maturity_hours = 720.0"
    yield ""
    yield "[store]"
    yield "# The training store that `ecluse store` writes: a folder, or the URL of an object store."
    yield '# url = ".ecluse/store"'
    yield "# Fields that never reach it, or only as a keyed hash, or with their last four characters (docs/store.md). What is"
    yield "# forgotten is remembered by hashes of this key, which must stay the store's: keep it out of version control."
    yield '# drop = ["email"]'
    yield '# hash = ["card_number"]'
    yield '# mask = ["phone"]'
    yield f"hash_key_file = {_quoted(str(hash_key))}"


def _loop() -> Iterator[str]:
    yield "[monitor]"
    yield "# `ecluse monitor` reports on each day, and asks for a new model where one no longer fits (docs/monitoring.md)."
    yield "# What the business needs of it is yours to set; a number is not judged before."
    yield "# recall = { warn = 0.7, alarm = 0.6 }"
    yield "# precision = { warn = 0.3, alarm = 0.2 }"
    yield "# More alerts than so many times those on the held-out rows; and a new model in any case."
    yield "# alerts = { warn = 1.5, alarm = 3.0 }"
    yield '# schedule = "every 30d"'
    yield ""
    yield "[trainer]"
    yield "# `ecluse trainer` trains what is asked for, in a process with limits."
    yield "# time_limit_minutes = 120.0"
    yield "# memory_limit_mb = 4096"
    yield ""
    yield "[study]"
    yield "# Of several candidates the smallest is taken that loses no more than this of the best one's average precision."
    yield "# tolerance = 0.01"
    yield "# max_size_bytes = 50000000"


def _role(setting: str, column: str | None, what: str, otherwise: str) -> Iterator[str]:
    if column is None:
        yield f"# {setting}: no column of the file is {what}; {otherwise}."
    else:
        yield f"{setting} = {_quoted(column)}"


def _field(column: "Column") -> str:
    kind = _quoted(str(column.type))
    return f"{_quoted(column.name)} = {kind if column.required else f'{{ type = {kind}, required = false }}'}"


def _label_note(found: "Inferred") -> str:
    share = f"{found.positives:,} of {found.rows:,} rows ({found.positives / found.rows:.2%}) are 1"
    meaning = "" if found.positive is None else f": {_quoted(found.positive)} counts as 1, the other value as 0"
    unlabelled = f"; {found.unlabelled:,} rows have no label" if found.unlabelled else ""
    return f"{share}{meaning}{unlabelled}"


def _budgets(found: "Inferred") -> tuple[float, float]:
    """0.5% and 0.1% where positives are rare; where they are common, as many alerts as positives, one in five blocked."""
    share = found.positives / found.rows
    alerts = 0.005 if share < 0.02 else min(round(share, 2), 0.5)
    return alerts, round(alerts / 5, 4)


def _quoted(text: str) -> str:
    """A TOML basic string: JSON's, and DEL escaped too."""
    return json.dumps(text, ensure_ascii=False).replace("\x7f", "\\u007f")


def _comment(text: str) -> str:
    """Text for a comment, where control characters are not allowed."""
    return "".join(letter if letter.isprintable() else " " for letter in text)


def _shown_name(name: str) -> str:
    return name if name.isprintable() and name.strip() else _quoted(name)
