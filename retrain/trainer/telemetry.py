"""What the trainer tells of itself: metrics, and whether it does its work."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from ecluse.transport.progress import Progress
from retrain.trainer.election import Election

_EDGES = (10, 30, 60, 300, 600, 1800, 3600, 7200, 14_400, 28_800)


class TrainerTelemetry:
    """The metrics of one trainer, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        self.runs = Counter(
            "ecluse_trainer_runs", "Requests that were finished, by what became of each.", ["state"], registry=registry
        )
        self.seconds = Histogram(
            "ecluse_trainer_run_seconds", "Time of one run, from its set to its end.", buckets=_EDGES, registry=registry
        )
        self.waiting = Gauge("ecluse_trainer_open_requests", "Requests without a finished run.", registry=registry)
        self.elected = Gauge(
            "ecluse_trainer_elected", "1 while this trainer is the one that trains.", registry=registry
        )
        self.training = Gauge("ecluse_trainer_training", "1 while a model is being made.", registry=registry)


class TrainerHealth:
    """Whether the trainer does its work. `trouble` is what it waits for, in a sentence; empty where nothing is amiss."""

    progress: Progress | None = None
    waits = None

    def __init__(self, election: Election) -> None:
        self._election = election
        self.trouble = ""

    def live(self) -> list[str]:
        """Why the trainer should be restarted; empty where it should not."""
        return [] if self._election.alive else ["the thread that follows the requests has ended"]

    def ready(self) -> list[str]:
        """Why it does not do its work; empty where it does, or stands by while another does."""
        if self.trouble:
            return [self.trouble]
        return ["nobody is elected yet"] if self._election.elected is None else []
