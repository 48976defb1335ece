"""Requests that wait together share one call of the model.

One call runs at a time. A short one runs on the event loop: handing it to a thread would take longer. A long one runs in a
thread, so that the loop goes on reading requests, which gather meanwhile.
"""

import asyncio
import contextlib
import time
import weakref
from collections import deque
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np

from ecluse.bisect import by_halves
from ecluse.errors import ModelError, RequestRefused
from ecluse.sections import ServeSettings
from ecluse.telemetry import Telemetry
from scoring.champion import Champion
from scoring.live import LiveModel
from scoring.serve.rows import Matrix, Rows

#: A call that is expected to take longer goes to the thread.
_INLINE_SECONDS = 0.002


class Scored(NamedTuple):
    """The scores of one request's rows, and who gave them. `levels`: 0 below both thresholds, 1 from review, 2 from block."""

    champion: Champion
    scores: list[float]
    levels: list[int]


@dataclass(slots=True, eq=False)
class Waiting:
    """A request's rows, the version that it asks for, and where its answer goes."""

    rows: Rows
    version: int | None
    answer: asyncio.Future[Scored]


class Batcher:
    """Scores rows with the champion of the moment. A context of a running event loop.

    Args:
        settings: batch sizes and waits, and the bound on what may wait.
        live: where the champion is read, once for each batch.
        telemetry: where it counts.
    """

    def __init__(self, settings: ServeSettings, live: LiveModel, telemetry: Telemetry) -> None:
        self._settings, self._live, self._telemetry = settings, live, telemetry
        self._loop = asyncio.get_running_loop()
        self._thread = ThreadPoolExecutor(1, "ecluse-serve-model")
        self._queue: deque[Waiting] = deque()
        self._timer: asyncio.Handle | None = None
        self._calling = False
        self._timed: weakref.ref[Champion] | None = None  # one that was replaced must not stay in memory for this
        self._row_seconds = 0.0  # what a row took in the last call of `_timed`
        #: Rows that wait for the model.
        self.rows = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._thread.shutdown()

    async def score(self, rows: Rows, version: int | None) -> Scored:
        """The scores of a request's rows, all by one champion: `version`, where one is asked for.

        Raises:
            RequestRefused: too much waits, the champion is another, there is none, or a row cannot be scored.
        """
        if self.rows + len(rows) > self._settings.queue_rows:
            raise RequestRefused("Too many rows wait for the model. Ask again later.", status=429)
        waiting = Waiting(rows, version, self._loop.create_future())
        self._queue.append(waiting)
        self.rows += len(rows)
        self._schedule()
        try:
            return await waiting.answer
        except asyncio.CancelledError:  # nobody waits for it: it must not take the place of others
            with contextlib.suppress(ValueError):  # its call has begun
                self._queue.remove(waiting)
                self.rows -= len(rows)
            raise

    def _schedule(self) -> None:
        """Call the model at once where a batch is full; else after the wait that others may use to join."""
        if self._calling or not self._queue:
            return
        full = self.rows >= self._settings.batch_rows
        if self._timer is not None and full:
            self._timer.cancel()
            self._timer = None
        if self._timer is None:
            wait = 0.0 if full else self._settings.batch_wait_ms / 1e3
            # Even without a wait, what the loop has read by now joins first.
            self._timer = self._loop.call_later(wait, self._call) if wait else self._loop.call_soon(self._call)

    def _call(self) -> None:
        self._timer = None
        batch = self._take()
        if not batch:
            return
        self._calling = True
        champion = self._live.champion
        if champion is None:
            self._settle(batch, [no_champion(self._live)] * len(batch))
        elif (
            self._timed is not None
            and champion is self._timed()
            and _rows(batch) * self._row_seconds <= _INLINE_SECONDS
        ):
            self._settle(batch, self._scored(champion, batch))
        else:
            future = self._loop.run_in_executor(self._thread, self._scored, champion, batch)
            future.add_done_callback(lambda done: self._settle(batch, done.result()))

    def _take(self) -> list[Waiting]:
        """The next requests, of `batch_rows` rows at most; a larger one goes alone. Who gave up waiting is passed over."""
        batch: list[Waiting] = []
        rows = 0
        while self._queue and (not batch or rows + len(self._queue[0].rows) <= self._settings.batch_rows):
            waiting = self._queue.popleft()
            self.rows -= len(waiting.rows)
            if not waiting.answer.done():
                batch.append(waiting)
                rows += len(waiting.rows)
        return batch

    def _scored(self, champion: Champion, batch: Sequence[Waiting]) -> list[Scored | Exception]:
        started = time.perf_counter()
        try:
            return score_batch(champion, batch)
        except Exception as error:  # every request must hear of it
            return [error] * len(batch)
        finally:
            took, rows = time.perf_counter() - started, _rows(batch)
            self._timed, self._row_seconds = weakref.ref(champion), took / rows
            self._telemetry.predict.observe(took)
            self._telemetry.batch_size.observe(rows)

    def _settle(self, batch: Sequence[Waiting], results: Sequence[Scored | Exception]) -> None:
        self._calling = False
        for waiting, result in zip(batch, results, strict=True):
            if waiting.answer.done():  # it gave up meanwhile
                continue
            if isinstance(result, Exception):
                waiting.answer.set_exception(result)
            else:
                waiting.answer.set_result(result)
        self._schedule()


def score_batch(champion: Champion, batch: Sequence[Waiting]) -> list[Scored | Exception]:
    """Each request's scores, or why it has none. All rows share a call of the model; rows on which it fails fail alone.

    Raises:
        RequestRefused: the model fails on its own usual values too.
    """
    matrices = [_matrix(champion, waiting) for waiting in batch]
    good = [matrix for matrix in matrices if not isinstance(matrix, Exception)]
    if not good:
        return [matrix for matrix in matrices if isinstance(matrix, Exception)]
    whole = good[0] if len(good) == 1 else np.concatenate(good)
    blocks, errors = by_halves(lambda part: champion.score(whole[part[0] : part[-1] + 1]), range(len(whole)))
    if not blocks:
        try:
            champion.require_sound(errors[0])
        except ModelError as error:
            raise RequestRefused(str(error), status=503) from error
    scores = np.full(len(whole), np.nan)
    if blocks:
        scores[[row for row in range(len(whole)) if row not in errors] if errors else slice(None)] = np.concatenate(
            blocks
        )
    limits = champion.arm.thresholds
    levels = ((scores >= limits.review).astype(np.int64) + (scores >= limits.block)).tolist()
    all_scores = scores.tolist()
    results: list[Scored | Exception] = []
    start = 0
    for matrix in matrices:
        if isinstance(matrix, Exception):
            results.append(matrix)
            continue
        stop = start + len(matrix)
        failed = next((row for row in errors if start <= row < stop), None)
        if failed is None:
            results.append(Scored(champion, all_scores[start:stop], levels[start:stop]))
        else:
            kind = type(errors[failed]).__name__
            results.append(RequestRefused(f"Row {failed - start}: the model fails on it ({kind})."))
        start = stop
    return results


def no_champion(live: LiveModel) -> RequestRefused:
    """Why nothing can be scored yet."""
    return RequestRefused(live.degraded or "No model is warm yet.", status=503)


def require_version(champion: Champion, version: int | None) -> None:
    """Refuse a request for a version that does not score.

    Raises:
        RequestRefused: it is not the champion's.
    """
    if version is not None and version != champion.version:
        raise RequestRefused(
            f"Version {version} of model {champion.name} does not serve: version {champion.version} is its champion.",
            status=404,
        )


def _rows(batch: Sequence[Waiting]) -> int:
    return sum(len(waiting.rows) for waiting in batch)


def _matrix(champion: Champion, waiting: Waiting) -> Matrix | RequestRefused:
    try:
        require_version(champion, waiting.version)
        return waiting.rows.matrix(champion)
    except RequestRefused as error:
        return error
