"""Hypothesis strategies of the contract's records."""

from hypothesis import strategies as st

from ecluse.contract.records import (
    Alert,
    Arm,
    Decision,
    Prediction,
    Reason,
    Release,
    Route,
    Severity,
    Source,
    Thresholds,
)

texts = st.text(max_size=20)
numbers = st.floats(allow_nan=False, allow_infinity=False)
counts = st.integers(0, 2**63 - 1)
sources = st.builds(Source, topic=texts, partition=counts, offset=counts)
reasons = st.builds(Reason, feature=texts, value=st.none() | numbers | texts, usual=st.none() | numbers, effect=numbers)
scored = {
    "event_id": texts,
    "entity": texts,
    "event_time": numbers,
    "scored_at": numbers,
    "model": texts,
    "version": counts,
    "arm": texts,
    "decision": st.sampled_from(Decision),
    "threshold": numbers,
    "route_revision": counts,
    "source": sources,
}
predictions = st.builds(Prediction, propensity=numbers, score=st.none() | numbers, **scored)
alerts = st.builds(
    Alert,
    score=numbers,
    severity=st.sampled_from(Severity),
    reasons=st.just("skipped") | st.lists(reasons, max_size=3),
    fields=st.dictionaries(
        texts, st.none() | st.booleans() | st.integers(-(2**63), 2**63) | numbers | texts, max_size=3
    ),
    **scored,
)
releases = st.builds(Release, name=texts, version=counts, created_at=numbers, manifest_sha256=texts, size_bytes=counts)
thresholds = st.tuples(numbers, numbers).map(lambda pair: Thresholds(min(pair), max(pair)))
arms = st.builds(Arm, name=texts, version=counts, thresholds=thresholds, share=numbers)
routes = st.builds(Route, name=texts, arms=st.lists(arms, min_size=1, max_size=3).map(tuple), created_at=numbers)
records = predictions | alerts | releases | routes
