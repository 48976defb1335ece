"""What a number of a report is of, in words."""

_SUBJECTS = {
    "psi": "the scores",
    "change": "scores, alerts",
    "average_precision": "the scores",
    "calibration": "the scores",
}


def subject(name: str, of: str | None) -> str:
    """The input that a number is of; where it is of none, what else; empty where its name says all."""
    return _SUBJECTS.get(name, "") if of is None else of
