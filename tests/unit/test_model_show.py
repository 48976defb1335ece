"""What `ecluse model show` makes of a manifest's values."""

import pytest

from console.model_show import _words


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (("2026-03-01", "2026-03-12"), "2026-03-01, 2026-03-12"),
        ({"time": "the time", "id": ["a", "b"]}, "time: the time; id: a, b"),
        ([], "none"),
        (None, "none"),
        (20180401, "20180401"),
    ],
)
def test_values_of_a_manifest_are_shown_without_pythons_marks(value: object, words: str) -> None:
    assert _words(value) == words
