"""The demonstration's back office: it tells of each positive event that was let through, as a bank would hear of it."""

import datetime as dt

import msgspec
import polars as pl

from console.demo_data import ORIGIN, Scene
from console.demo_watch import Prediction
from ecluse import kafka, tables
from ecluse.contract.records import Decision
from ecluse.settings import Settings
from ingest.labels import HEADERS, column_meaning

#: The columns that may say when a label became known.
_KNOWN_AT = ("label_known_at", "known_at")


class BackOffice:
    """Writes labels as any service can: JSON, by a plain Kafka producer.

    Nobody disputes a payment that was blocked, and nobody says of one that it was right. A label is written as soon as its
    event is scored, and says itself when it became known, on the events' clock: by the end of the maturity, and halfway to it
    where the file does not say.
    """

    def __init__(self, scene: Scene, settings: Settings) -> None:
        self._topic = settings.names.labels(ORIGIN)
        self._producer = kafka.producer(settings)
        self._maturity = scene.maturity.total_seconds()
        self._known_at = _positives(scene, settings)
        #: How many labels were written.
        self.told = 0

    def hear(self, prediction: Prediction) -> None:
        """Tell of a prediction's event, if it is to be told of."""
        if prediction.decision is Decision.BLOCK or prediction.event_id not in self._known_at:
            return
        known_at = self._known_at.pop(prediction.event_id)
        latest = prediction.event_time + self._maturity
        label = {
            "event_id": prediction.event_id,
            "value": 1,
            "known_at": min(known_at, latest) if known_at is not None else latest - self._maturity / 2,
        }
        self._producer.produce(self._topic, msgspec.json.encode(label), prediction.event_id, headers=HEADERS)
        self.told += 1

    def send(self) -> None:
        """Have the broker confirm what was told."""
        self._producer.flush(kafka.PATIENCE)


def times_of_labels(scene: Scene) -> str | None:
    """The column that says when each label became known, where the file has one."""
    schema = pl.read_parquet_schema(scene.parts[0])
    return next((column for column in _KNOWN_AT if isinstance(schema.get(column), pl.Datetime)), None)


def _positives(scene: Scene, settings: Settings) -> dict[str, float | None]:
    """When each positive event of the stream became known as such, in seconds since 1970, by its id."""
    name, label, positive = settings.stream.id_field, settings.model.label, settings.model.positive
    assert name is not None  # rows without an id were numbered
    told = times_of_labels(scene)
    columns = [name, label, *([told] if told else [])]
    rows = pl.concat([pl.read_parquet(part, columns=columns) for part in scene.parts])
    values = tables.as_texts(rows[label]).str.strip_chars()
    meant = [value for value in values.drop_nulls().unique() if value and column_meaning(value, positive)]
    rows = rows.with_columns(tables.as_texts(rows[name])).filter(values.is_in(meant))
    times: list[dt.datetime | None] = rows[told].to_list() if told else [None] * rows.height
    utc = [time if time is None or time.tzinfo else time.replace(tzinfo=dt.UTC) for time in times]
    return dict(zip(rows[name].to_list(), [time and time.timestamp() for time in utc], strict=True))
