"""Which requests are open, and which of them is trained next."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ecluse.contract.loop import Asker, RetrainRequest, Run, RunState


@dataclass(frozen=True)
class Turn:
    """A request to train, and those that waited with it: what comes of it is their answer, too."""

    request: RetrainRequest
    merged: tuple[RetrainRequest, ...] = ()


def open_requests(requests: Iterable[RetrainRequest], runs: Mapping[tuple[str, str], Run]) -> list[RetrainRequest]:
    """Those without a finished run, in their order."""
    return [request for request in requests if not finished(runs.get((request.model, request.id)))]


def finished(run: Run | None) -> bool:
    """Whether a request has its answer. A run that is training may be of a trainer that is no more."""
    return run is not None and run.state is not RunState.TRAINING


def choose(waiting: Iterable[RetrainRequest]) -> Turn | None:
    """The newest request that a drift made, else the newest of all; the others are merged into it. None: nothing waits."""
    waiting = list(waiting)
    if not waiting:
        return None
    drifts = [request for request in waiting if request.asker is Asker.DRIFT]
    chosen = (drifts or waiting)[-1]
    return Turn(chosen, tuple(request for request in waiting if request is not chosen))
