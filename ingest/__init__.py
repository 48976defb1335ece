"""Events come in: the publisher, the replay of files, and the generator of card transactions."""

from ingest.generator import Drift, DriftKind, generate
from ingest.publisher import Publisher
from ingest.replay import Pace, Replay

__all__ = ["Drift", "DriftKind", "Pace", "Publisher", "Replay", "generate"]
