"""The odds that an event's outcome could be seen, and what the champion would have done with it: by the route of its time.

Whether a version blocks an event is told by its score. The prediction holds that of the version that took it; any other that
the route names scores it again here, with the features that a worker computes.
"""

from collections.abc import Iterator, Mapping
from typing import TypeVar

import msgspec
import numpy as np
import polars as pl
from numpy.typing import NDArray

from ecluse.bisect import by_halves
from ecluse.contract.records import BYPASS, Arm, Release, Route
from ecluse.errors import DataError, ModelError, cause
from ecluse.model.artefact import load_model
from ecluse.model.runtime import Model
from ecluse.settings import Settings
from retrain.weights import Flags, Numbers, arm_shares, bypass_odds, seen_odds

#: Rows in one call of a model.
_ROWS = 10_000
Models = dict[tuple[str, int], Model]
_Record = TypeVar("_Record", Release, Route)


class Rescorer:
    """Tells the odds of events that were decided about.

    Args:
        settings: the stream's; the models come from its store, verified as for a worker.
        revisions: rows of the table `revisions`.
    """

    def __init__(self, settings: Settings, revisions: pl.DataFrame) -> None:
        self._settings = settings
        private = settings.store
        self._private = {name.lower() for name in (*private.drop, *private.hash, *private.mask)}
        self._routes: dict[int, Route] = {}
        self._releases: dict[tuple[str, int], Release] = {}
        for revision, kind, record in _records(revisions):
            if kind == "route":
                self._routes[revision] = _decoded(record, Route, revision)
            elif kind == "release":
                release = _decoded(record, Release, revision)
                self._releases[release.name, release.version] = release
        self._models: Models = {}
        #: The SHA-256 of the manifest of each version that scored again, by ``name/version``.
        self.used: dict[str, str] = {}

    def __call__(self, rows: pl.DataFrame, fields: pl.DataFrame) -> pl.DataFrame:
        """The odds of each row.

        Args:
            rows: what the predictions say: `arm`, `propensity`, `score`, `version`, `route_revision`.
            fields: the events' fields, by their own names; row by row.

        Returns:
            Row by row `odds` (pi), `champion_score`, `would_block` (whether the champion of its time blocks it, or would have)
            and `experiment` (whether its route draws arms by entity).

        Raises:
            DataError: a revision or a release is not in the training store, or a version needs a field that the store does not
                hold as it was.
            ModelError: a version cannot be loaded, or fails.
        """
        before, self._models = self._models, {}
        told = {
            "odds": np.empty(rows.height),
            "champion_score": np.empty(rows.height),
            "would_block": np.empty(rows.height, dtype=bool),
            "experiment": np.empty(rows.height, dtype=bool),
        }
        revisions = rows["route_revision"].to_numpy()
        for revision in np.unique(revisions).tolist():
            places = np.flatnonzero(revisions == revision)
            route = self.route(revision, len(places))
            for name, values in self._by_route(route, rows[places], fields[places], before).items():
                told[name][places] = values
        return pl.DataFrame(told)

    @property
    def routes(self) -> Mapping[int, Route]:
        """Every route that the stream had, by its revision."""
        return self._routes

    def route(self, revision: int, events: int) -> Route:
        """The route by which so many events were decided.

        Raises:
            DataError: it is not in the training store.
        """
        if revision not in self._routes:
            raise DataError(
                f"The training store holds no route of revision {revision}, by which {events:,} events were decided: "
                "without it their odds are not known. `ecluse store` reads the models topic from its start."
            )
        return self._routes[revision]

    def model(self, name: str, version: int) -> Model:
        """A version, loaded once.

        Raises:
            DataError, ModelError: as on calling.
        """
        return self._model(name, version, self._models)

    def again(self, model: Model, fields: pl.DataFrame) -> Numbers:
        """What a model makes of events, by their fields: scores of shape (n,), NaN where it fails on one.

        Raises:
            DataError, ModelError: as on calling.
        """
        self._require_whole(model, fields)
        matrix = model.features.matrix_of_frame(fields)
        parts = [_scored(model, matrix[start : start + _ROWS]) for start in range(0, len(matrix), _ROWS)]
        return np.concatenate([np.empty(0), *parts])

    def _by_route(
        self, route: Route, rows: pl.DataFrame, fields: pl.DataFrame, before: Models
    ) -> dict[str, Numbers | Flags | bool]:
        shares, names = arm_shares(route), [arm.name for arm in route.arms]
        if unknown := set(rows["arm"].unique()) - {*names, BYPASS}:
            raise DataError(f"Events are in the arm '{min(unknown)}', which their route does not name.")
        share = rows["arm"].replace_strict([*names, BYPASS], [*shares, 1.0], return_dtype=pl.Float64).to_numpy()
        scores = [self._scores(route, arm, rows, fields, before) for arm in route.arms]
        # Without a score an event becomes a dead letter: such an arm does not block it, and shows no outcome of it either.
        through = np.stack(scores, axis=1) < np.array([arm.thresholds.block for arm in route.arms])
        past = bypass_odds((rows["arm"] == BYPASS).to_numpy(), rows["propensity"].to_numpy(), share)
        return {
            "odds": seen_odds(past, shares, ~through),
            "champion_score": scores[0],
            "would_block": scores[0] >= route.champion.thresholds.block,
            "experiment": len(route.arms) > 1,
        }

    def _scores(self, route: Route, arm: Arm, rows: pl.DataFrame, fields: pl.DataFrame, before: Models) -> Numbers:
        """The scores of an arm's version, shape (n,): that of the prediction where it is this version's."""
        own = (rows["version"] == arm.version) & rows["score"].is_not_null()
        scores = rows["score"].fill_null(np.nan).to_numpy(writable=True)
        others = np.flatnonzero(~own.to_numpy())
        if len(others):
            scores[others] = self.again(self._model(route.name, arm.version, before), fields[others])
        return scores

    def _require_whole(self, model: Model, fields: pl.DataFrame) -> None:
        """No event lacks a required field: where the store does, it was told then to keep it out."""
        required = {each.field for each in model.manifest.features if self._settings.stream.fields[each.field].required}
        for name in sorted(required.intersection(fields.columns)):
            if missing := fields[name].null_count():
                raise DataError(
                    f"The training store lacks the required field '{name}' of {missing:,} events, so what version "
                    f"{model.version} of model {model.name} would have done with them is not known: did store.drop name it "
                    "then? `--since` leaves early events out."
                )

    def _model(self, name: str, version: int, before: Models) -> Model:
        """A version, from what was in use for the rows before these, else loaded."""
        key = (name, version)
        if key in self._models:
            return self._models[key]
        if key in before:
            self._models[key] = before[key]
            return before[key]
        release = self._releases.get(key)
        if release is None:
            raise DataError(f"The training store holds no release of version {version} of model {name}.")
        section = self._settings.model.model_copy(update={"name": name})
        model = load_model(self._settings.model_copy(update={"model": section}), version, release)
        if private := [each.field for each in model.manifest.features if each.field.lower() in self._private]:
            raise DataError(
                f"Version {version} of model {name} needs the field '{private[0]}', which does not reach the training store as "
                "it was (store.drop, store.hash, store.mask): what it would have done with events is not known."
            )
        self.used[f"{name}/{version}"] = release.manifest_sha256
        self._models[key] = model
        return model


def _scored(model: Model, matrix: NDArray[np.float32]) -> Numbers:
    """The scores of rows, shape (n,); NaN where the model fails on a row, of which a worker makes a dead letter.

    Raises:
        ModelError: the model fails on all of them, its own usual values too.
    """
    rows = range(len(matrix))
    found, errors = by_halves(lambda part: model.score(matrix[part[0] : part[-1] + 1]), rows)
    if not found:
        try:
            model.score(model.usual[None, :])
        except Exception as error:  # a model raises anything
            raise ModelError(f"Version {model.version} of model {model.name} fails: {cause(error)}.") from errors[0]
    scores = np.full(len(matrix), np.nan)
    scores[[row for row in rows if row not in errors]] = np.concatenate([np.empty(0), *found])
    return scores


def _records(revisions: pl.DataFrame) -> Iterator[tuple[int, str, str]]:
    known = revisions.filter(pl.col("record").is_not_null()).sort("offset")
    yield from known.select("offset", "kind", "record").iter_rows()


def _decoded(record: str, kind: type[_Record], revision: int) -> _Record:
    try:
        return msgspec.json.decode(record, type=kind)
    except msgspec.MsgspecError as error:
        raise DataError(f"Revision {revision} of the models topic cannot be read: {cause(error)}.") from error
