"""Nothing that became known later is in a training set: random timelines, against a plain account of the rules."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import polars as pl
import pytest
from hypothesis import HealthCheck, given
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st

from ecluse.errors import DataError
from ecluse.settings import Settings
from retrain import known
from retrain.manifests import SetManifest
from retrain.trainingset import build, rebuild
from tests.conftest import MakeSettings
from tests.stores import ROUTE, at, decision, event, fill, label, past, prediction, revision, route
from tests.unit import artefacts

ORIGINS, MATURITY, BLOCK, SHARE = ("chargeback", "analyst"), 4.0, 0.5, 0.25
#: As of this hour; timelines go on for as long again.
NOW = 12.0
Row = Mapping[str, Any]
HOURS = st.integers(0, 24).map(float)


@st.composite
def timelines(draw: st.DrawFn) -> tuple[list[Row], list[Row], list[Row]]:
    """Events of few ids, decided about or not, some of them twice; and what was said of them."""
    events, decided, labels = [], [], []
    for number in range(draw(st.integers(1, 14))):
        hours = draw(HOURS)
        happened = event(
            number % 2,
            number // 2,
            hours,
            event_id=f"e{draw(st.integers(0, 8))}",
            entity=f"card-{draw(st.integers(0, 2))}",
            known_at=at(hours + draw(st.sampled_from([0.0, 0.0, 2.0, 9.0]))),
            readable=draw(st.integers(0, 9)) > 0,
            amount=draw(st.sampled_from([5.0, 38.0])),
        )
        events.append(happened)
        for again in range(draw(st.sampled_from([0, 1, 1, 1, 2]))):
            delay = draw(st.sampled_from([0.0, 0.0, 3.0]))
            place = {"offset": 2 * happened["offset"] + again, "known_at": happened["known_at"] + (at(delay) - at(0))}
            score = draw(st.sampled_from([0.1, 0.3, 0.9]))
            if draw(st.booleans()):
                decided.append(past(happened, SHARE, **place))
            else:
                share = draw(st.sampled_from([1.0, 1 - SHARE]))
                said = {"score": score, "decision": str(decision(score, BLOCK)), "propensity": share}
                decided.append(prediction(happened, **said, **place))
    for number in range(draw(st.integers(0, 14))):
        value, origin = draw(st.sampled_from([0, 1, None])), draw(st.sampled_from([*ORIGINS, "stranger"]))
        said_of = f"e{draw(st.integers(0, 8))}"
        labels.append(label(said_of, value, draw(HOURS), number, origin=origin, alerted=draw(st.booleans())))
    return events, decided, labels


def expected(
    events: Sequence[Row], decided: Sequence[Row], labels: Sequence[Row], silence: str
) -> list[tuple[Any, ...]]:
    """The rows of the set, by the rules as they are told to people: id, place, outcome, its origin, score, weight, unit."""
    rows = []
    there = sorted(
        (e for e in events if e["known_at"] <= at(NOW) and e["readable"]), key=lambda e: (e["partition"], e["offset"])
    )
    seen: set[str] = set()
    for e in there:
        if e["event_id"] in seen:
            continue
        seen.add(e["event_id"])
        about = [p for p in decided if (p["partition"], p["source_offset"]) == (e["partition"], e["offset"])]
        about = sorted((p for p in about if p["known_at"] <= at(NOW)), key=lambda p: p["offset"])
        if e["event_time"] > at(NOW - MATURITY) or not about or about[0]["decision"] == "block":
            continue
        outcome, origin = said_of(e["event_id"], labels, silence)
        if outcome is None:
            continue
        p = about[0]
        score = p["score"]
        would_score = score if score is not None else float(own_score(e["amount"]))
        bypass = p["propensity"] if p["arm"] == "bypass" else 1 - p["propensity"]
        odds = bypass if would_score >= BLOCK else 1.0
        place = (e["event_time"], e["partition"], e["offset"])
        rows.append((place, (e["event_id"], outcome, origin, score, 1 / odds, f"{e['known_at'].date()} {e['entity']}")))
    return [row for _, row in sorted(rows)]


def said_of(event_id: str, labels: Sequence[Row], silence: str) -> tuple[int | None, str]:
    speaking = []
    for origin in ORIGINS:
        said = [one for one in labels if (one["event_id"], one["origin"]) == (event_id, origin)]
        said = sorted(
            (one for one in said if one["known_at"] <= at(NOW)), key=lambda one: (one["known_at"], one["offset"])
        )
        if said and said[-1]["value"] is not None:
            speaking.append(said[-1])
    if speaking:
        selected = silence == "unknown" and all(one["alerted"] for one in speaking)
        return (None if selected else speaking[0]["value"]), speaking[0]["origin"]
    return (0, "silence") if silence == "negative" else (None, "")


def own_score(amount: float) -> float:
    return float(artefacts.ESTIMATOR.predict_proba(np.array([[amount]], dtype=np.float32))[0, 1])


def found(file: Path) -> list[tuple[Any, ...]]:
    columns = ("event_id", "fraud", "label_origin", "score", "weight", "unit")
    return pl.read_parquet(file).select(columns).rows()


@pytest.fixture
def stream(make_settings: MakeSettings) -> Settings:
    settings = make_settings(labels={"maturity_hours": MATURITY, "origins": ORIGINS})
    artefacts.store(settings)
    return settings


@given(timeline=timelines(), silence=st.sampled_from(["negative", "unknown"]))
@hypothesis_settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_a_set_holds_what_was_known_then_and_nothing_that_came_to_be_known_later_changes_a_byte(
    stream: Settings, timeline: tuple[list[Row], list[Row], list[Row]], silence: str
) -> None:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = stream.model_copy(
            update={
                "labels": stream.labels.model_copy(update={"silence": silence}),
                "store": stream.store.model_copy(update={"url": str(folder / "store")}),
            }
        )
        then = [[row for row in rows if row["known_at"] <= at(NOW)] for rows in timeline]
        later = [[row for row in rows if row["known_at"] > at(NOW)] for rows in timeline]
        fill(settings, revisions=[revision(0, artefacts.release_of(settings)), revision(ROUTE, route(settings, BLOCK))])
        fill(settings, *then)
        wanted, first = expected(*timeline, silence), folder / "first.parquet"
        if not wanted:
            with pytest.raises(DataError):
                build(settings, at(NOW), None, first, lambda *_: None)
            return
        manifest = build(settings, at(NOW), None, first, lambda *_: None)
        rows = found(first)
        assert [row[:4] + row[5:] for row in rows] == [row[:4] + row[5:] for row in wanted]
        assert [row[4] for row in rows] == pytest.approx([row[4] for row in wanted])
        fill(settings, *later)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(known, "SLICE_ROWS", 3)  # nor do the rows depend on how many are worked on at once
            assert build(settings, at(NOW), None, folder / "second.parquet", lambda *_: None).sha256 == manifest.sha256
        assert rebuild(settings, manifest, folder / "third.parquet", lambda *_: None) == manifest
        counts = SetManifest.read(folder / "first.json").counts
        assert counts.events == sum(row["known_at"] <= at(NOW) for row in timeline[0])
        apart = counts.unreadable + counts.duplicates + counts.outside + counts.immature + counts.unscored
        assert counts.events == apart + counts.population
