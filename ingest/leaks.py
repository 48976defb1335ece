"""Columns that tell the label: known only afterwards, or made from it. A model must not see them.

Two signs: the column's name, and how well the column alone puts the positive rows first (average precision of its best
single-column rule). Few rows prove nothing: there a perfect column is kept, with a warning.
"""

import re
from dataclasses import dataclass

import numpy as np
import polars as pl
from numpy.typing import NDArray

#: Of the way from a column that knows nothing (average precision: the share of positives) to one that knows all (1).
_LEAK = 0.99
_SUSPECT = 0.97
#: Fewer of either class say nothing at all.
_FEWEST = 5
_FEW_VALUES = 50
_ROWS_A_VALUE = 10
#: Fewer than that of either class, or rows in all, and a perfect column may be chance: of few values, of many.
_ENOUGH_FEW = (20, 100)
_ENOUGH_MANY = (50, 500)
_AFTERWARDS = re.compile(
    r"^label(_|$)|(^|_)(known|resolved|confirmed|reviewed|decided|disputed|closed|charged_?back)_(at|on|date|time)$"
    r"|^(chargeback|dispute|verdict|investigation)(_(at|date|time|id|reason|amount|status|code))?$"
)
_OF_THE_LABEL = r"_?(at|on|time|date|type|kind|scenario|reason|category|class|code|source|origin|known_at|confirmed)$"


@dataclass(frozen=True, slots=True)
class Leak:
    """Why a column seems to tell the label; `certain`: it must not be used, else a person should look."""

    certain: bool
    reason: str


def leak_by_name(name: str, label: str) -> Leak | None:
    """Judge by names (lower-case words joined by underscores): ``label_known_at``, ``fraud_scenario`` of ``fraud``."""
    stem = re.sub(r"^is_|_(label|flag)$", "", label)
    if _AFTERWARDS.search(name):
        return Leak(True, "LEAKS the label: by its name it is known only afterwards")
    if stem and re.match(re.escape(stem) + _OF_THE_LABEL, name):
        return Leak(True, f"LEAKS the label: by its name it describes the label '{label}'")
    return None


def leak_by_values(values: pl.Series, label: NDArray[np.bool_]) -> Leak | None:
    """Judge by how well the column alone tells the rows where `label` is true; both of the same length."""
    rarer = min(int(label.sum()), int((~label).sum()))
    if rarer < _FEWEST:
        return None
    few = values.n_unique() <= min(_FEW_VALUES, len(values) // _ROWS_A_VALUE)
    score = max((_average_precision(label, rule) for rule in _rules(values, label, few)), default=0.0)
    base = float(label.mean())
    known = (score - base) / (1.0 - base)
    if known < _SUSPECT:
        return None
    how = f"alone it tells the label almost surely (average precision {score:.3f} over {len(values):,} rows)"
    of_a_class, in_all = _ENOUGH_FEW if few else _ENOUGH_MANY
    if known >= _LEAK and rarer >= of_a_class and len(values) >= in_all:
        return Leak(True, f"LEAKS the label: {how}, as if made from it")
    return Leak(False, f"CHECK: {how}; keep it only if it is known when the event happens")


def _rules(values: pl.Series, label: NDArray[np.bool_], few: bool) -> list[NDArray[np.float64]]:
    """Scores that a single column can give: its values' share of positives, its rank either way, whether it is blank."""
    if few:
        frame = pl.DataFrame({"value": values, "label": label})
        return [frame.select(pl.col("label").mean().over("value")).to_series().to_numpy()]
    blank = values.is_null().to_numpy().astype(np.float64)
    rules = [blank, 1.0 - blank]
    if values.dtype.is_numeric():
        numbers = values.cast(pl.Float64)
        ranks = (ordered.rank("dense").fill_null(0) for ordered in (numbers, -numbers))
        rules.extend(rank.cast(pl.Float64).to_numpy() for rank in ranks)
    return rules


def _average_precision(label: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    """Mean precision over the positives, ranked by falling score; rows of equal score are counted together."""
    order = np.argsort(-score)
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(score) - 1)
    found = np.cumsum(label[order])[ends]
    return float(np.sum(np.diff(found, prepend=0) * found / (ends + 1)) / found[-1])
