"""From a labelled file to a released champion: a child process makes the draft, this one signs and publishes it."""

import datetime as dt
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ecluse.model.manifest import Manifest
from ecluse.model.registry import read_registry
from ecluse.model.store import ModelStore
from ecluse.settings import Settings
from retrain import process
from retrain.publish import publish, require_key


@dataclass(frozen=True)
class Window:
    """Which rows of the file are taken, and from when on they are held out; None: no limit, or `model.holdout`."""

    since: dt.datetime | None = None
    until: dt.datetime | None = None
    holdout_since: dt.datetime | None = None


def train_and_publish(
    settings: Settings, file: Path, window: Window | None = None, say: Callable[[str], None] = lambda _: None
) -> tuple[Manifest, int | None]:
    """Train the stream's model, store the artefact, and put its release and a route that makes it champion on `models`.

    Args:
        settings: the stream's.
        file: labelled rows (.csv, .jsonl, .parquet).
        window: which of them.
        say: gets a line before each long step.

    Returns:
        The manifest, and the revision of the route; None where a newer version is champion already.

    Raises:
        BrokerUnreachable, TopicsWrong, SettingsError: it could not be published (asked before anything long begins).
        DataError: the file cannot be read.
        ModelRefused: there is nothing to learn from, the script fails, or the ONNX is not its equal. Nothing is published.
        ProcessFailed: the child ended before it was done.
    """
    window = window or Window()
    require_ready(settings)
    with tempfile.TemporaryDirectory(prefix="ecluse-draft-") as draft:
        process.run(
            process.Train(
                process.for_child(settings), draft, str(file), window.since, window.until, window.holdout_since
            ),
            say,
        )
        say("Publishing")
        return publish(settings, Path(draft), champion=True)


def require_ready(settings: Settings) -> None:
    """Ask the broker, the store and the key before anything long begins.

    Raises: as `train_and_publish`.
    """
    require_key(settings)
    read_registry(settings)
    ModelStore.of(settings)
