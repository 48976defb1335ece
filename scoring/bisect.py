"""Find the items on which a call fails, so that they alone fail."""

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")
R = TypeVar("R")


def by_halves(call: Callable[[Sequence[T]], R], items: Sequence[T]) -> tuple[list[R], dict[int, Exception]]:
    """Call on all items; where it raises, on each half, down to single items.

    Returns:
        The results of the calls that went well, in the items' order, and the error of each position that failed alone.
        With one bad item among n, about 2 log2(n) calls are made.
    """
    results: list[R] = []
    errors: dict[int, Exception] = {}

    def attempt(start: int, stop: int) -> None:
        try:
            results.append(call(items[start:stop]))
        except Exception as error:
            if stop - start == 1:
                errors[start] = error
                return
            middle = (start + stop) // 2
            attempt(start, middle)
            attempt(middle, stop)

    if items:
        attempt(0, len(items))
    return results, errors
