"""What a replay found, for people and for programs."""

import math
from typing import Any

from console.output import out, print_json, print_table
from console.replay_compare import SCORED, Comparison, Why
from console.replay_result import Replayed
from scoring.replaying import Outcome

_MEANING = {
    Why.SCORE: "the new score alone: so too with the old thresholds",
    Why.THRESHOLD: "the thresholds alone: with the old ones the decision stays",
    Why.BOTH: "neither alone: with the old thresholds a third decision",
    Why.NEWLY_SCORED: "was a dead letter",
    Why.NO_LONGER_SCORED: "becomes a dead letter",
}
#: First reasons that are listed.
_LISTED = 10


def as_json(done: Replayed) -> None:
    """All numbers as one JSON object."""
    found, wanted = done.comparison, done.wanted
    limits = done.champion.arm.thresholds
    print_json(
        {
            "run": done.run,
            "model": done.champion.name,
            "version": done.champion.version,
            "topic": done.topic,
            "from": wanted.since,
            "to": wanted.until,
            "offsets": {str(partition): span for partition, span in wanted.spans.items()},
            "events": found.events,
            "predictions": found.events - found.now[Outcome.DEAD_LETTER],
            "compared": found.compared,
            "same": found.compared - found.changed,
            "changed": found.changed,
            "decisions": [
                {"then": then, "now": now, "events": count} for (then, now), count in sorted(_pairs(found).items())
            ],
            "reasons": _reasons(found),
            "newly_alerting": {
                "events": found.newly_alerting.total(),
                "by_first_reason": [
                    {"feature": why or None, "explained": why is not None, "events": count}
                    for why, count in found.newly_alerting.most_common()
                ],
            },
            "scores": {
                "compared": found.scored_twice,
                "mean_difference": found.difference_sum / max(1, found.scored_twice),
                "max_difference": found.difference_max,
            },
            "thresholds": {"review": limits.review, "block": limits.block},
            "past_thresholds": past_thresholds(found),
            "bypassed": {now: found.bypassed[now] for now in Outcome},
            "waiting": found.waiting,
            "not_found": found.not_found,
            "deleted_about": done.gone,
            "cut_partitions": sorted(wanted.cut),
            "seconds": round(done.seconds, 3),
            "events_per_second": round(found.events / max(done.seconds, 1e-9), 1),
        }
    )


def _reasons(found: Comparison) -> dict[Why, dict[str, int]]:
    totals, stricter, milder = found.by_reason(), found.by_reason(stricter=True), found.by_reason(stricter=False)
    return {why: {"events": totals[why], "stricter": stricter[why], "milder": milder[why]} for why in Why}


def past_thresholds(found: Comparison) -> list[dict[str, Any]]:
    """The thresholds that decided in the past, those of most decisions first; `block` is null where nobody knows it."""
    return [
        {
            "version": arm[0],
            "route_revision": arm[1],
            "events": count,
            "review": found.past.known[arm].review,
            "block": found.past.known[arm].block if math.isfinite(found.past.known[arm].block) else None,
        }
        for arm, count in found.arms.most_common()
    ]


def _pairs(found: Comparison) -> dict[tuple[Outcome, Outcome], int]:
    pairs: dict[tuple[Outcome, Outcome], int] = {}
    for (then, now, _), count in found.changes.items():
        pairs[then, now] = pairs.get((then, now), 0) + count
    return pairs


def print_report(done: Replayed) -> None:
    """Tables, and what they come to."""
    found = done.comparison
    model = f"{done.champion.name} version {done.champion.version}"
    out.print(f"{found.events:,} events that arrived {done.wanted.words}, scored again by {model}", soft_wrap=True)
    out.print()
    pairs = _pairs(found)
    outcomes = [each for each in Outcome if each in SCORED or any(each in pair for pair in pairs)]
    rows = [[then.value, *(pairs.get((then, now), 0) for now in outcomes)] for then in outcomes]
    print_table(["decided then", *(f"now {now}" for now in outcomes)], rows)
    out.print()
    if found.changed:
        _print_reasons(found)
    out.print(verdict(found), style="bold", soft_wrap=True)
    for note in _notes(done):
        out.print(note, markup=False, soft_wrap=True)


def _print_reasons(found: Comparison) -> None:
    rows: list[list[object]] = [
        [why.value, *counts.values(), _MEANING[why]] for why, counts in _reasons(found).items() if counts["events"]
    ]
    print_table(["changed by", "events", "stricter", "milder", "that is"], rows)
    out.print()
    if found.newly_alerting:
        ranked = found.newly_alerting.most_common()
        names = {None: "(too many alerts at once: not looked for)", "": "(no single input)"}
        first: list[list[object]] = [[names.get(why, why), count] for why, count in ranked[:_LISTED]]
        if rest := sum(count for _, count in ranked[_LISTED:]):
            first.append(["(others)", rest])
        print_table(["allowed then, alerting now: first reason", "events"], first)
        out.print()


def verdict(found: Comparison) -> str:
    """The result in a sentence."""
    if not found.compared:
        return "Nothing could be compared: none of these events has a decision of the past."
    if not found.changed:
        return f"No decision changes: all {found.compared:,} stay as they were."
    share = found.changed / found.compared
    return f"{found.changed:,} of {found.compared:,} decisions change ({share:.2%})."


def _notes(done: Replayed) -> list[str]:
    found, limits = done.comparison, done.champion.arm.thresholds
    mean = found.difference_sum / max(1, found.scored_twice)
    notes = [
        f"Scores differ by {mean:.2g} on average and by {found.difference_max:.2g} at most."
        if found.scored_twice
        else "",
        f"Thresholds now: review from {limits.review:.6g}, block from {limits.block:.6g}.",
        *(
            f"Version {arm['version']} by route revision {arm['route_revision']} decided {arm['events']:,}: review from "
            f"{arm['review']:.6g}, block from {'an unknown score' if arm['block'] is None else format(arm['block'], '.6g')}."
            for arm in past_thresholds(found)[:5]
        ),
        f"Not compared, because they went past the model then: {found.bypassed.total():,}, of which this version would review "
        f"{found.bypassed[Outcome.REVIEW]:,} and block {found.bypassed[Outcome.BLOCK]:,}."
        if found.bypassed
        else "",
        f"Not compared, because the workers have not come so far: {found.waiting:,}." if found.waiting else "",
        f"Not compared, because neither a prediction nor a dead letter was found: {found.not_found:,}. Retention took it, or "
        "it came out of order because the group was set back; `ecluse audit` tells whether any is missing."
        if found.not_found
        else "",
        f"Retention has deleted events of {len(done.wanted.cut)} partitions that may belong to the range"
        f"{f': about {done.gone:,}, by the outputs that are left' if done.gone else ''}."
        if done.wanted.cut
        else "",
        f"The predictions are on {done.topic}, header ecluse-replay-run = {done.run} "
        f"({found.events / max(done.seconds, 1e-9):,.0f} events/s).",
    ]
    return [note for note in notes if note]
