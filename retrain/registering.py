"""From somebody's own model to a release: a child process checks it and makes the draft, this one signs and publishes it."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from ecluse.contract.records import Thresholds
from ecluse.errors import DataError, ModelRefused
from ecluse.model.manifest import Manifest
from ecluse.settings import Settings
from retrain import process
from retrain.publish import publish
from retrain.training import require_ready


@dataclass(frozen=True)
class Brought:
    """A model of somebody's own (.joblib or .onnx), what it sees (.toml or .json), and rows of the stream's fields."""

    model: Path
    features: Path
    samples: Path


def register_and_publish(
    settings: Settings,
    brought: Brought,
    thresholds: Thresholds | None = None,
    *,
    trust_pickle: bool = False,
    say: Callable[[str], None] = lambda _: None,
) -> Manifest:
    """Check a model, store it and release it. It does not become the champion by this.

    Args:
        settings: the stream's.
        brought: the files.
        thresholds: of the model; chosen on the sample rows by the settings' policy where None.
        trust_pickle: whether a joblib file may be unpickled, which runs code, in the child process.
        say: gets a line before each long step.

    Raises:
        BrokerUnreachable, TopicsWrong, SettingsError: it could not be published (asked before anything long begins).
        DataError: a file cannot be read.
        ModelRefused: the model could not be served, with the reason. Nothing is published.
        ProcessFailed: the child ended before it was done.
    """
    _require_files(brought, trust_pickle=trust_pickle)
    require_ready(settings)
    model, features, samples = (str(path) for path in (brought.model, brought.features, brought.samples))
    with tempfile.TemporaryDirectory(prefix="ecluse-draft-") as draft:
        process.run(process.Register(process.for_child(settings), draft, model, features, samples, thresholds), say)
        say("Publishing")
        manifest, _ = publish(settings, Path(draft), champion=False)
        return manifest


def _require_files(brought: Brought, *, trust_pickle: bool) -> None:
    for path in (brought.model, brought.features, brought.samples):
        if not path.is_file():
            raise DataError(f"There is no file {path}.")
    ending = brought.model.suffix.lower()
    if ending not in (".joblib", ".onnx"):
        raise ModelRefused(
            f"{brought.model} ends in '{ending}': a model is registered from a .joblib or an .onnx file."
        )
    if ending == ".joblib" and not trust_pickle:
        raise ModelRefused(
            f"{brought.model} is a pickle, and loading a pickle runs whatever code is in it. If you trust who made it, say so "
            "with --trust-pickle: it is loaded once, in a process without the signing key, and workers get its ONNX form. "
            "An .onnx file needs no trust."
        )
