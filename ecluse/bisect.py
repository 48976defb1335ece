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
    # No function that calls itself: it would be a reference cycle, and hold every chunk until the garbage collector comes.
    spans = [(0, len(items))] if items else []
    while spans:
        start, stop = spans.pop()
        try:
            results.append(call(items[start:stop]))
        except Exception as error:
            if stop - start == 1:
                errors[start] = error
                continue
            middle = (start + stop) // 2
            spans += [(middle, stop), (start, middle)]
    return results, errors
