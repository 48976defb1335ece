"""The demonstration's bypass and training store: what goes past the model, and the set of what flowed."""

import datetime as dt
import time

from console.demo_watch import Watch, stored_by
from console.stage import Child, Stage
from ecluse.settings import Settings
from retrain.manifests import SetManifest

#: Of the eligible events: as much as the settings allow where they say nothing else.
SHARE = "10%"
#: Deadlines: of a command, and of the sink's last commits.
_COMMAND_SECONDS, _STORE_SECONDS = 60.0, 30.0
_POLL_SECONDS = 0.1
_SET = "set.parquet"


def turn_on(stage: Stage, settings: Settings) -> str:
    """Have a share of the events go past the model, as a user would; what came of it."""
    key = settings.stream.key_field
    if key is None:
        return "off: no column of the file is an entity (a card, a customer) to draw by"
    stage.run(_COMMAND_SECONDS, "bypass", "bypass", "set", SHARE)
    return f"{SHARE} of the events go past the model, drawn by {key} and day"


def wait_stored(stage: Stage, sink: Child, expected: int) -> int:
    """Wait until a sink has stored so many rows, or does not in time: the audit tells what is missing.

    Raises:
        ProcessFailed: the sink ended.
    """
    deadline = time.monotonic() + _STORE_SECONDS
    while (rows := stored_by(sink).total()) < expected and time.monotonic() < deadline:
        stage.require_running(sink)
        time.sleep(_POLL_SECONDS)
    return rows


def start_build(stage: Stage, watch: Watch, maturity: dt.timedelta) -> Child:
    """Begin to build the training set of what flowed, as a user would, by what was known when the last event was mature."""
    last = dt.datetime.fromtimestamp(int(watch.last_event) + 1, dt.UTC)
    as_of = f"{last + maturity:%Y-%m-%dT%H:%M:%S}"
    return stage.start("set", "dataset", "build", "--as-of", as_of, "--out", _SET)


def built(stage: Stage, builder: Child) -> SetManifest:
    """What `start_build` has come to.

    Raises:
        ProcessFailed: no set could be built, or not in time.
    """
    stage.wait(lambda: builder.ended, _COMMAND_SECONDS, "`ecluse dataset build` has not ended")
    stage.require_done(builder)
    return SetManifest.read((stage.folder / _SET).with_suffix(".json"))
