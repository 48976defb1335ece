"""`ecluse model list`, `promote` and `rollback`: which versions there are, and which of them scores the stream."""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import typer
from rich.filesize import decimal
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from console.output import ConfigOption, JsonOption, ServersOption, err, out, print_json, print_table, say, settings_of
from console.reading import clock_time, printable
from ecluse.contract.records import Arm
from ecluse.errors import ModelError, ModelNotFound

if TYPE_CHECKING:
    from ecluse.model.manifest import Manifest
    from ecluse.model.registry import Registry
    from ecluse.settings import Settings

_READERS = 8


@dataclass(frozen=True)
class Version:
    """A version as the topic and the store know it. `fault` says why its manifest could not be read."""

    version: int
    state: str
    released: bool
    stored: bool
    created_at: float | None
    form: str
    size_bytes: int | None
    metrics: dict[str, float]
    fault: str


def list_versions(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Show the versions that the store holds or the models topic names, the newest first."""
    from ecluse.model.registry import read_registry

    settings = settings_of(config, servers)
    registry = read_registry(settings)
    versions = versions_of(settings, registry)
    routed = registry.routes.get(settings.model_name)
    if json:
        champion = routed and routed.route.champion.version
        revision = routed and routed.revision
        print_json(
            {"model": settings.model_name, "champion": champion, "revision": revision, "versions": versions},
        )
        return
    if not versions:
        say(f"There is no version of model {settings.model_name} yet: `ecluse model train FILE` makes one.")
        return
    columns = ["version", "created (UTC)", "form", "size", "AP", "ROC AUC", "state"]
    print_table(columns, [_row(each) for each in versions])
    for each in versions:
        if each.fault:
            say(f"Version {each.version} cannot be used: {each.fault}")


def versions_of(settings: "Settings", registry: "Registry") -> list[Version]:
    """All versions of the stream's model, the newest first.

    Raises:
        ModelError: the store cannot be read.
    """
    from ecluse.model.store import ModelStore

    name, store = settings.model_name, ModelStore.of(settings)
    stored = set(store.versions(name))
    released = {version: release for (model, version), release in registry.releases.items() if model == name}

    def look(version: int) -> Version:
        release, manifest, fault = released.get(version), None, ""
        if version in stored:
            try:
                manifest = store.manifest(name, version, release.manifest_sha256 if release else None)
            except ModelError as error:
                fault = str(error)
        size = release.size_bytes if release else None
        return Version(
            version=version,
            state=state_of(registry, name, version, stored=version in stored),
            released=release is not None,
            stored=version in stored,
            created_at=manifest.created_at if manifest else release.created_at if release else None,
            form=form_of(manifest) if manifest else "",
            size_bytes=sum(manifest.sizes.values()) if manifest else size,
            metrics=manifest.metrics if manifest else {},
            fault=fault,
        )

    with ThreadPoolExecutor(_READERS) as readers:  # a distant store answers each question late
        return list(readers.map(look, sorted(stored | released.keys(), reverse=True)))


def state_of(registry: "Registry", name: str, version: int, *, stored: bool) -> str:
    """What a version is to the stream, in words."""
    routed = registry.routes.get(name)
    if routed is not None and version == routed.route.champion.version:
        state = "champion"
    elif routed is not None and version in (arm.version for arm in routed.route.history):
        state = "former champion"
    else:
        state = "released"
    if (name, version) not in registry.releases:
        return "stored, not released" if state == "released" else f"{state}, not released"
    return state if stored else f"{state}, not in the store"


def form_of(manifest: "Manifest") -> str:
    """What workers load: ONNX where there is one."""
    from ecluse.model.manifest import JOBLIB, ONNX

    return "ONNX" if ONNX in manifest.files else "joblib" if JOBLIB in manifest.files else "none"


def _row(each: Version) -> list[object]:
    precision, area = (
        "" if (value := each.metrics.get(name)) is None else f"{value:.3f}" for name in ("average_precision", "roc_auc")
    )
    created = "" if each.created_at is None else clock_time(each.created_at)[:16]
    size = "" if each.size_bytes is None else decimal(each.size_bytes)
    state = f"{each.state}, cannot be used" if each.fault else each.state
    return [each.version, created, each.form, size, precision, area, state]


def promote(
    version: Annotated[int, typer.Argument(min=1, help="The version that is to score the stream.")],
    config: ConfigOption = None,
    servers: ServersOption = None,
    json: JsonOption = False,
) -> None:
    """Make a released version the champion, with the thresholds of its manifest. Its copy in the store is checked first."""
    from ecluse.model import routes
    from ecluse.model.registry import read_registry

    settings = settings_of(config, servers)
    registry = read_registry(settings)
    routed = registry.routes.get(settings.model_name)
    before = routed.route.champion.version if routed else None
    if routed is not None and before == version:
        if json:
            print_json(_change(settings, before, version, routed.revision) | {"changed": False})
        else:
            _print(
                f"Version {version} of model {settings.model_name} is champion already, by revision {routed.revision}."
            )
        return
    manifest = checked(settings, registry, version, in_store=True)
    champion = Arm("champion", version, manifest.thresholds)
    revision = routes.promote(settings, champion, routed.revision if routed else None)
    _tell(settings, before, version, revision, json)


def rollback(config: ConfigOption = None, servers: ServersOption = None, json: JsonOption = False) -> None:
    """Make the champion before this one the champion again. Its files and signature are checked first."""
    from ecluse.model import routes
    from ecluse.model.registry import read_registry

    settings = settings_of(config, servers)
    registry = read_registry(settings)
    routed = registry.routes.get(settings.model_name)
    if routed is None:
        raise ModelNotFound(f"No version of model {settings.model_name} was ever champion.")
    version = routes.rolled_back(settings.model_name, routed).champion.version
    checked(settings, registry, version, in_store=False)
    revision = routes.rollback(settings, routed.revision)
    _tell(settings, routed.route.champion.version, version, revision, json)


def checked(settings: "Settings", registry: "Registry", version: int, *, in_store: bool) -> "Manifest":
    """The manifest of a released version that workers would take, as far as can be told without loading it.

    `in_store` looks at what other machines will fetch; else a good copy in this machine's cache is enough, which is quick.

    Raises:
        ModelNotFound: it was never released, or the store does not hold it whole.
        ModelRefused: its files, its signature, its form or its features are not as they must be.
        ModelError, SettingsError: it cannot be checked.
    """
    from ecluse.model.artefact import require_form, verified, verified_in_store
    from ecluse.model.features import FeatureSet
    from ecluse.model.routes import require_release

    release = require_release(registry, settings.model_name, version)
    with download(version) as progress:
        manifest, _ = (verified_in_store if in_store else verified)(settings, version, release, progress)
    require_form(settings, manifest)
    FeatureSet(manifest.features, settings.stream.schema_of_events())
    return manifest


@contextmanager
def download(version: int) -> Iterator[Callable[[int, int], None]]:
    """A bar on stderr, once there is something to download."""
    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=True), TimeRemainingColumn()
    with Progress(*columns, console=err, transient=True, disable=not sys.stderr.isatty()) as bar:
        task = bar.add_task(f"Fetching version {version}", visible=False)
        yield lambda done, total: bar.update(task, completed=done, total=total, visible=True)


def _change(settings: "Settings", before: int | None, version: int, revision: int) -> dict[str, object]:
    return {"model": settings.model_name, "from": before, "to": version, "revision": revision}


def _tell(settings: "Settings", before: int | None, version: int, revision: int, json: bool) -> None:
    if json:
        print_json(_change(settings, before, version, revision) | {"changed": True})
        return
    instead = "as the first" if before is None else f"in the place of version {before}"
    _print(f"Version {version} of model {settings.model_name} is champion {instead}, by revision {revision}.")
    say("Workers take it between two chunks: `ecluse model status` asks them.")


def _print(sentence: str) -> None:
    out.print(printable(sentence, 1000), markup=False, soft_wrap=True)
